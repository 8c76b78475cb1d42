"""Writes a drafter in the format that another engine reads.

  python -m experiments.export --checkpoint=DRAFTER_DIR --target=TARGET --format=speculators \\
      --output=DIR

The checkpoint is one in any format that `specjax.load_drafter` reads, a hub repository included;
the drafter of a training run is what its --export_dir holds. Formats: zlab (DFlash, DFlash2),
safeailab (EAGLE-3), speculators (both), medusa, hf (a language model), plain (any network). A
drafter of your own is FILE.py:NAME:DIR. What is written is read back and compared, bit by bit,
before the command reports success.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import specjax
from experiments import cli
from specjax.checkpoint.drafters.export import FORMATS, save_drafter, take_export
from specjax.checkpoint.drafters.source import PICKLES, read_source
from specjax.checkpoint.export import named_tensors
from specjax.checkpoint.load import download, locate, own_family
from specjax.drafters.spec import ask

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The drafter.", required=True)
_TARGET = flags.DEFINE_string("target", "demo:target", "What it drafts for.")
_FORMAT = flags.DEFINE_string(
    "format",
    None,
    f"The format to write: {', '.join(FORMATS)}, or one of a kind of yours.",
    required=True,
)
_OUTPUT = flags.DEFINE_string("output", None, "The directory to make.", required=True)
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "Of the stored weights. Default: the checkpoint's."
)
_VERIFIER = flags.DEFINE_string(
    "verifier",
    None,
    "How the target is called in config.json: a hub repository or a path. Default: --target.",
)


def main(argv: Sequence[str]) -> None:
    del argv
    with cli.one_line_errors():
        output = take_export(_OUTPUT.value, "--output")
        target = specjax.load(_TARGET.value)
        kind, checkpoint = own_family(_CHECKPOINT.value)
        path = _find(checkpoint)
        called = lambda place: str(place) if kind is None else f"{kind}:{place}"
        # Read without loss, written as it was.
        drafter = specjax.load_drafter(called(path), target, dtype="float32")
        dtype = _DTYPE.value or _stored(path)
        save_drafter(
            drafter, output, format=_FORMAT.value, target=target, dtype=dtype, verifier=_verifier()
        )
        again = specjax.load_drafter(called(output), target, dtype=dtype)
        ours, theirs = _weights(drafter, dtype), _weights(again, dtype)
    if ours.keys() != theirs.keys() or any((ours[n] != theirs[n]).any() for n in ours):
        cli.fail(f"{output}: reads back differently; this is a bug.")
    size = sum(path.stat().st_size for path in output.iterdir())
    print(
        f"{output}: {_FORMAT.value}, {len(ours)} tensors in {dtype}, {size / 1e6:.1f} MB; reads "
        "back equal."
    )


def _find(name: str) -> Path:
    path, is_repository = locate(name)
    if is_repository:
        return download(name, None, otherwise=PICKLES)
    if (path / "run.json").is_file() and not (path / "config.json").is_file():
        raise ValueError(
            f"{name}: the working directory of a training run; have it export first "
            "(python -m experiments.train_drafter ... --export_only --export_dir=DIR)."
        )
    return path


def _stored(path: Path) -> str:
    """bfloat16 where all weights are; everything else fits in float32."""
    tensors = read_source(path).tensors.values() if path.is_dir() else ()
    floats = {x.dtype.name for x in tensors if x.dtype.name not in ("bool", "int64", "int32")}
    return "bfloat16" if floats == {"bfloat16"} else "float32"


def _verifier() -> str:
    name = _VERIFIER.value or _TARGET.value
    path = Path(name).expanduser()
    return str(path.resolve()) if _VERIFIER.value is None and path.is_dir() else name


def _weights(drafter: Any, dtype: str) -> dict[str, np.ndarray]:
    return named_tensors(ask(drafter, "own_net")().params, dtype)


if __name__ == "__main__":
    cli.run(main)
