"""Writes what the target itself answers to prompts, as data to train drafters on.

    python -m experiments.regenerate --config=configs/regenerate.py --output=runs/regenerated.jsonl

A line is {"prompt", "response", "tokens", "prompt_tokens", "finish"}: the token ids of prompt and
response are what `experiments.train_drafter` reads, since text that is tokenised again may come
back as other tokens than the target wrote. A killed run, started again, continues; the lines do not
depend on how often that happened, nor, but for the rounding of the arithmetic, on the batch.
"""

from __future__ import annotations

from specjax.cli.errors import one_line_errors
from specjax.cli.script import Script
from specjax.core.compile_cache import default_directory, use_compile_cache
from specjax.jobs import regenerating


def main(options: regenerating.Options) -> None:
    with one_line_errors():
        use_compile_cache(default_directory())
        run = regenerating.begin(options)
    regenerating.finish(run)


script = Script("regenerate", __doc__, regenerating.Options, main, several=True)
