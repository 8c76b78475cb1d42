"""Writes passages of held-out files of a corpus as prompts, for benchmarks of the demo models.

  python -m experiments.heldout_prompts --output=runs/heldout.jsonl
  python -m experiments.benchmark --config=configs/benchmark.py --workdir=runs/heldout \\
      --config.prompt_sets="('jsonl:runs/heldout.jsonl',)" --config.num_prompts=0

Of each file the lines before its middle, up to the end of a line's text: the demo models never saw
a line break token behind which indentation follows (docs/demo_models.md).
"""

from __future__ import annotations

from specjax.cli.errors import one_line_errors
from specjax.cli.script import Script
from specjax.jobs import passages


def main(options: passages.Options) -> None:
    with one_line_errors():
        num = passages.heldout_prompts.of(options)
    print(f"{num} prompts in {options.output}")


script = Script("heldout_prompts", __doc__, passages.Options, main)
