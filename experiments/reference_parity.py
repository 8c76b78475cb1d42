"""Shows that exported drafters mean to other people's code what they mean here.

Drafters are exported in each of their formats, loaded by the code that the format comes from
(packages dflash, speculators, specforge; PyTorch on CPU) and compared with this project in float32:
hidden states, logits, guesses, the whole text of the reference's own decoding loop with the number
of tokens of each of its cycles, and the losses of the reference's own trainer over its first
updates, from the same weights, on the same text, with the same anchors.

Without flags: fresh drafters of a small random target, some minutes on 2 CPU cores. Expected: all
lines PASS and exit status 0.

  pip install -e '.[parity]' && pip install --no-deps specforge==0.2.0
  python -m experiments.reference_parity
  python -m experiments.reference_parity --target=TARGET_DIR --drafter=DRAFTER_DIR
  python -m experiments.reference_parity --python=/path/to/the/reference/environment/bin/python

Exit status 1: a difference above its tolerance. 2: nothing was compared, or bad input.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags

import specjax
from experiments import cli
from experiments.benchmarking.reference_cases import compare, fresh_drafters, write_target

_TARGET = flags.DEFINE_string("target", None, "A Hugging Face directory; default: a random one.")
_DRAFTER = flags.DEFINE_multi_string("drafter", [], "Directories of drafters for --target.")
_PYTHON = flags.DEFINE_string(
    "python", sys.executable, "The Python that has the reference packages."
)
_STEPS = flags.DEFINE_integer("steps", 3, "Updates of the trainers.", 1)


def main(argv: Sequence[str]) -> None:
    del argv
    with cli.one_line_errors():
        if bool(_DRAFTER.value) != (_TARGET.value is not None):
            raise ValueError("--drafter and --target are given together.")
        if not Path(_PYTHON.value).exists():
            raise ValueError(f"--python={_PYTHON.value}: no such file.")
    jax.config.update("jax_default_matmul_precision", "highest")
    with tempfile.TemporaryDirectory() as scratch:
        if _TARGET.value is None:
            directory = write_target(Path(scratch) / "target")
            target = specjax.load(directory, dtype="float32")
            drafters = fresh_drafters(target)
        else:
            with cli.one_line_errors():
                directory = Path(_TARGET.value).resolve()
                target = specjax.load(directory, dtype="float32")
                drafters = {
                    Path(path).name: specjax.load_drafter(path, target, dtype="float32")
                    for path in _DRAFTER.value
                }
        rows, missing = compare(
            drafters, target, directory, Path(scratch), python=_PYTHON.value, steps=_STEPS.value
        )
    width = max([len(row.name) for row in rows], default=0)
    for row in rows:
        result = "PASS" if row.passed else "FAIL"
        print(f"{row.name:<{width}}  {row.difference:>8.1e}  {row.tolerance:>8.0e}  {result}")
    for package in sorted(missing):
        print(f"package {package} is not installed for {_PYTHON.value}: its checks were left out.")
    if not rows:
        cli.fail("nothing was compared; install the extra: pip install -e '.[parity]'")
    failed = [row.name for row in rows if not row.passed]
    print(f"{len(rows) - len(failed)} of {len(rows)} within tolerance.")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    app.run(main)
