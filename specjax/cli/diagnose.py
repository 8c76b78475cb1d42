"""Says in words what limits a run: draft, acceptance, verification or overhead, and what to try.

  python -m experiments.diagnose --run=runs/bench                 # every case of a benchmark
  python -m experiments.diagnose --trace=run.jsonl --costs=costs.json [--plain=plain.jsonl]
  python -m experiments.diagnose                                  # measures the demo pair, here
  python -m experiments.diagnose --target=DIR --drafter=DIR:4 --prompt_set=mt-bench:question.jsonl

The last two decode and calibrate on this machine, which takes a few minutes of compiling, and keep
the costs with --save_costs.
"""

from __future__ import annotations

from specjax.cli.errors import one_line_errors
from specjax.cli.script import Script
from specjax.jobs import diagnosing


def main(options: diagnosing.Options) -> None:
    with one_line_errors():
        found = diagnosing.diagnose.of(options)
    for name, explanation in found.items():
        diagnosing.show(name, explanation)


script = Script("diagnose", __doc__, diagnosing.Options, main)
