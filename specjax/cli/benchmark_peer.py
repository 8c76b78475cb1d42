"""Times decoding on CPU against Hugging Face Transformers, on the same checkpoints and prompts.

Greedy, batch 1, a fixed number of new tokens on both sides; each framework in a process of its own
on the same cores, asked in turn. Needs `pip install -e '.[peer]'`. Expected: about ten minutes on
2 idle CPU cores; a table, four expectations with PASS or FAIL, and exit status 0 either way.

  python -m experiments.benchmark_peer --output=peer.json
  python -m experiments.benchmark_peer --repeats=1 --max_new_tokens=32 --lm_k=4 --ngram_k=6

docs/benchmarks.md says what the columns mean.
"""

from __future__ import annotations

from specjax.cli.errors import needs_lab, one_line_errors
from specjax.cli.script import Script

with needs_lab():
    from specjax.lab.bench.peer import job


def main(options: job.Options) -> None:
    with one_line_errors():
        job.benchmark_peer.of(options)


script = Script("benchmark_peer", __doc__, job.Options, main)
