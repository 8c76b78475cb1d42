"""Trains a drafter for a frozen target, measures it by real speculation, and exports it.

    python -m experiments.train_drafter --config=configs/train_dflash.py \\
        --workdir=runs/dflash --export_dir=runs/dflash/export

The same command resumes a run that was killed. Every ``eval_every`` steps tau is predicted by
replaying the training graph over held-out texts of the target, and measured by speculating on the
same prompts; where the two differ, training does not see what inference does. The cycles of the
newest measurement are in ``trace.jsonl`` of the workdir.
"""

from __future__ import annotations

from specjax.cli.errors import one_line_errors
from specjax.cli.script import Script
from specjax.cli.training import one_line_ends
from specjax.core.compile_cache import default_directory, use_compile_cache
from specjax.jobs import drafter_training
from specjax.train.config import DrafterConfig


def main(options: drafter_training.Options) -> None:
    with one_line_ends():
        with one_line_errors():
            use_compile_cache(default_directory())
            ready = drafter_training.prepare(options)
        drafter_training.finish(ready)


script = Script(
    "train_drafter",
    __doc__,
    drafter_training.Options,
    main,
    settings=DrafterConfig,
    several=True,
    survives_sigterm=True,
)
