"""Checks the cost model: predicted against measured speedup for many k, in one run.

Generations with and without the drafter alternate with samples of the costs, so that whatever
drifts on the machine meets both. About 4 minutes on two idle CPU cores for k = 1..16, most of it
compiling. Prints a table, says whether all k lie within --within, and exits with 0 either way.

  python -m experiments.predict_check --output=predicted.json
  python -m experiments.predict_check --ks=1,2,4 --rounds=2 --num_prompts=2
"""

from __future__ import annotations

from specjax.cli.errors import needs_lab, one_line_errors
from specjax.cli.script import Script

with needs_lab():
    from specjax.jobs import predicting


def main(options: predicting.Options) -> None:
    with one_line_errors():
        predicting.predict_check.of(options)


script = Script("predict_check", __doc__, predicting.Options, main)
