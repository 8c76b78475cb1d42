"""Audits a drafter and a verification rule: is the text distributed as the target's own?

With --target a target instead: is every layer's memory right, whatever is fed and kept of it?

  python -m experiments.audit --drafter=dflash                       # a registered drafter
  python -m experiments.audit --drafter=lm --rule=token
  python -m experiments.audit --drafter=my_method.py:drafter --rule=my_method.py:rule
  python -m experiments.audit --target=qwen3                         # with small random weights
  python -m experiments.audit --target=CHECKPOINT --drafter=ngram    # who guesses its text, too

A drafter of your own is a spec, a class of them, or a function that makes one for a target; a rule
is an instance of a subclass of specjax.verify.Rule. Neither needs to be registered (but may be, by
--import=FILE.py), and the file is run to get them.

Prints each check as it is done, with the first counterexample of those that fail, and ends with a
verdict. Exit status 0: no fault found; 1: a fault; 2: bad input. About a minute on 2 CPU cores.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import cli
from specjax.core.files import write_atomically
from specjax.drafters import DRAFTERS
from specjax.models import FAMILIES
from specjax.verify import RULES

with cli.needs_lab():
    from specjax.lab.audit import CHECKS, TARGET_CHECKS, Check, prepare

_DRAFTER = flags.DEFINE_string(
    "drafter", "lm", f"One of {', '.join(DRAFTERS)}; or path/to/file.py:NAME for your own."
)
_RULE = flags.DEFINE_string(
    "rule",
    None,
    f"One of {', '.join(RULES)}; or path/to/file.py:NAME. Default: the best for the drafter at "
    "each temperature.",
)
_TARGET = flags.DEFINE_string(
    "target",
    None,
    f"Audits a target: a checkpoint, one of {', '.join(sorted(FAMILIES))} with small random "
    "weights, or path/to/file.py:NAME, the class of a family. A --drafter guesses its text.",
)
_NUM_DRAFT = flags.DEFINE_integer(
    "num_draft",
    None,
    "Guesses a cycle. Default: what a drafter of your own says, else 2; with --target 4.",
)
_TEXTS = flags.DEFINE_integer(
    "texts", 8000, "Texts with each set of options; more find smaller deviations."
)
_ALPHA = flags.DEFINE_float(
    "alpha", 1e-5, "How often each statistical check may fail without a fault."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the texts; the verdict is the same in every run.")
_CHECKS = flags.DEFINE_list(
    "checks",
    None,
    f"Some of {', '.join(CHECKS)}; with --target of {', '.join(TARGET_CHECKS)}. Default: all.",
)
_OUTPUT = cli.define_file("output", "A .json file for the report.", ending=".json")


def main(argv: Sequence[str]) -> None:
    del argv

    def show(check: Check) -> None:
        print(check, flush=True)

    said = _TARGET.value is None or flags.FLAGS["drafter"].present
    with cli.one_line_errors():
        plan = prepare(
            _DRAFTER.value if said else None,
            _RULE.value,
            target=_TARGET.value,
            num_draft=_NUM_DRAFT.value,
            texts=_TEXTS.value,
            alpha=_ALPHA.value,
            seed=_SEED.value,
            checks=_CHECKS.value,
        )
        report = plan.run(show)
    print(report.ending)
    if _OUTPUT.value:
        write_atomically(Path(_OUTPUT.value), json.dumps(report.to_json(), indent=2) + "\n")
    sys.exit(0 if report.passed else 1)


if __name__ == "__main__":
    cli.run(main)
