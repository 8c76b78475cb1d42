"""Generates text by speculative decoding, shows whose token is whose, and measures the speedup.

Without flags: the embedded pair of models continues a piece of Python, greedily; no network and no
accelerator needed. Under a minute on 2 CPU cores, a few seconds once compiled.

  python -m experiments.generate --prompt='def area(' --temperature=0.8 --seed=3
  python -m experiments.generate --target=Qwen/Qwen3-4B --drafter=ngram --stream --dtype=bfloat16
  python -m experiments.generate --target=Qwen/Qwen3-4B --chat --prompt='Why is the sky blue?'
  python -m experiments.generate --prompt_file=prompts.jsonl --output=texts.jsonl
  python -m experiments.generate --trace=trace.jsonl --config.details

A killed run with --output, started again, continues where it stopped and writes the same lines.
--trace is written when all texts are done, at once; it holds the prompts that this run decoded.
What is not a flag here is a field of --config: --config.top_k=50. No setting is both.
"""

from __future__ import annotations

import contextlib
import sys

from specjax.cli.errors import one_line_errors
from specjax.cli.script import Script
from specjax.jobs import generating, starting, texts
from specjax.jobs.writing import open_console


def main(options: texts.Options) -> int:
    console = open_console()
    with contextlib.ExitStack() as stack:
        with one_line_errors():
            job, run = stack.enter_context(starting.begin(options))
        made = generating.finish(job, run, console)
    if made.interrupted:
        print("interrupted", file=sys.stderr)
        return 130
    return 0 if made.saved else 1


script = Script("generate", __doc__, texts.Options, main, several=True)
