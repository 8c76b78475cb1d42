"""Says what the weights of a checkpoint need in memory, and whether they fit: before they are read.

  python -m experiments.plan --target=TARGET_DIR --mesh=model:4
  python -m experiments.plan --target=TARGET_DIR --mesh=experts:8 --quantize=int8

Only the config and the headers of its files are looked at, and the devices of the mesh need not be
there. Exit status 1: the weights do not fit what is free on a device of this machine.
"""

from __future__ import annotations

from specjax.cli.errors import one_line_errors
from specjax.cli.script import Script
from specjax.jobs import planning


def main(options: planning.Options) -> int:
    with one_line_errors():
        made = planning.plan.of(options)
    print("\n".join(planning.table(made)))
    fits, said = planning.verdict(made)
    print(said)
    return 0 if fits else 1


script = Script("plan", __doc__, planning.Options, main)
