"""A drafter in the format that another engine reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

import specjax
from specjax.checkpoint.drafters.export import FORMATS, save_drafter, take_export
from specjax.checkpoint.drafters.named import Named
from specjax.checkpoint.drafters.source import PICKLES, read_source
from specjax.checkpoint.export import named_tensors
from specjax.checkpoint.load import own_family
from specjax.checkpoint.located import download, locate
from specjax.core.options import keywords, option
from specjax.drafters import DRAFTERS
from specjax.drafters.spec import ask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is written, and how."""

    checkpoint: str = option(help="The drafter.")
    target: str = option("demo:target", "What it drafts for.")
    format: str = option(
        help=f"The format to write: {', '.join(FORMATS)}, or one of a kind of yours."
    )
    output: str = option(help="The directory to make.")
    dtype: Literal["float32", "bfloat16"] | None = option(
        None, "Of the stored weights. Default: the checkpoint's."
    )
    verifier: str | None = option(
        None,
        "How the target is called in config.json: a hub repository or a path. Default: --target.",
    )


@keywords(Options)
def export(options: Options) -> str:
    """Writes the drafter, reads it back and compares; returns what was done, in one line.

    Raises:
      ValueError, OSError: in one line, on what cannot be read or written.
    """
    output = take_export(options.output, "--output")
    target = specjax.load(options.target)
    kind, checkpoint = _named(options)
    path = _find(checkpoint)

    def read(place: Path, dtype: str) -> Any:
        return Named(kind, str(place)).load(target, dtype=dtype, weights="unpacked")

    drafter = read(path, "float32")  # without loss; it is written as it was
    dtype, verifier = options.dtype or _stored(path), _verifier(options)
    save_drafter(
        drafter, output, format=options.format, target=target, dtype=dtype, verifier=verifier
    )
    again = read(output, dtype)
    ours, theirs = _weights(drafter, dtype), _weights(again, dtype)
    if ours.keys() != theirs.keys() or any((ours[n] != theirs[n]).any() for n in ours):
        raise ValueError(f"{output}: reads back differently; this is a bug.")
    size = sum(path.stat().st_size for path in output.iterdir())
    return (
        f"{output}: {options.format}, {len(ours)} tensors in {dtype}, {size / 1e6:.1f} MB; reads "
        "back equal."
    )


def _named(options: Options) -> tuple[str | None, str]:
    """The kind that is said, FILE.py:NAME or one that lies in its target, and the place."""
    kind, checkpoint = own_family(options.checkpoint)
    if kind is None:
        name, _, rest = checkpoint.partition(":")
        entry = DRAFTERS.get(name)
        if rest and entry is not None and entry.in_target:
            return name, rest
        asked = DRAFTERS.get(options.format)
        if asked is not None and asked.in_target:
            return options.format, checkpoint
    return kind, checkpoint


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


def _verifier(options: Options) -> str:
    if options.verifier is not None:
        return options.verifier
    path = Path(options.target).expanduser()
    return str(path.resolve()) if path.is_dir() else options.target


def _weights(drafter: Any, dtype: str) -> dict[str, np.ndarray]:
    return named_tensors(ask(drafter, "own_net")().params, dtype)
