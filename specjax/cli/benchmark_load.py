"""Measures decoding under load: requests of mixed lengths, so many of them at a time.

They wait in a queue. In lockstep a batch ends with its longest text; in rows
that change hands the next request moves in where a text ends. Both, with and without drafters, in
turn: throughput, tau, the share of rows that were busy, and how long a request waits for its
first and its last tokens.

  python -m experiments.benchmark_load --concurrency=1,2,4,8,16,32,64,128
  python -m experiments.benchmark_load --concurrency=2,4 --requests=12 --longest=48 --rounds=1

Expected: under a minute for the second, on 2 CPU cores.
"""

from __future__ import annotations

from specjax.cli.errors import needs_lab, one_line_errors
from specjax.cli.script import Script

with needs_lab():
    from specjax.lab.bench import load


def main(options: load.Options) -> None:
    with one_line_errors():
        load.benchmark_load.of(options)


script = Script("benchmark_load", __doc__, load.Options, main)
