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

from specjax.cli.errors import one_line_errors
from specjax.cli.script import Script
from specjax.jobs import exporting


def main(options: exporting.Options) -> None:
    with one_line_errors():
        print(exporting.export.of(options))


script = Script("export", __doc__, exporting.Options, main)
