"""Trains a language model from scratch and exports it as a Hugging Face directory.

    python -m experiments.train_lm --config=configs/train_lm.py:target --workdir=runs/target \\
        --export_dir=specjax/demo/target

The same command resumes a run that was killed.
"""

from __future__ import annotations

from specjax.cli.errors import one_line_errors
from specjax.cli.script import Script
from specjax.cli.training import one_line_ends
from specjax.jobs import lm_training
from specjax.train.config import LMConfig


def main(options: lm_training.Options) -> None:
    with one_line_ends():
        with one_line_errors():
            ready = lm_training.prepare(options)
        lm_training.finish(ready)


script = Script(
    "train_lm",
    __doc__,
    lm_training.Options,
    main,
    settings=LMConfig,
    several=True,
    survives_sigterm=True,
)
