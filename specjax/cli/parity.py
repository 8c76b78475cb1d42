"""Compares a checkpoint, as loaded here, with golden outputs of its reference implementation.

Expected: every line PASS and exit status 0, in a few seconds on a CPU.

  python -m experiments.parity --checkpoint=../shared/parity/llama3
  python -m experiments.parity --checkpoint=HUGGING_FACE_DIR      # against Transformers, at once
  python -m experiments.parity --checkpoint=../shared/weights/stories260K/stories260K.bin
  python -m experiments.parity --checkpoint=../shared/parity/dflash-qwen3 \\
    --target=../shared/parity/qwen3

Exit status 1: a difference above its tolerance. 2: nothing was compared, or bad input.
"""

from __future__ import annotations

from specjax.cli.errors import fail, one_line_errors
from specjax.cli.script import Script
from specjax.jobs import comparing


def main(options: comparing.Options) -> int:
    with one_line_errors():
        rows = comparing.parity.of(options)
    print(comparing.table(rows))
    compared = [row for row in rows if row.passed is not None]
    if not compared:
        fail("nothing was compared.")
    failed = [row.name for row in compared if not row.passed]
    print(f"{len(compared) - len(failed)} of {len(compared)} within tolerance.")
    return 1 if failed else 0


script = Script("parity", __doc__, comparing.Options, main)
