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

from specjax.cli.errors import needs_lab, one_line_errors
from specjax.cli.script import Script

with needs_lab():
    from specjax.jobs import auditing


def main(options: auditing.Options) -> int:
    with one_line_errors():
        report = auditing.audit.of(options)
    return 0 if report.passed else 1


script = Script("audit", __doc__, auditing.Options, main)
