"""A network of your own, by the name of its file (specjax.extend says what it needs).

  python -m experiments.train_drafter --config=configs/train_own.py --workdir=runs/pard \\
      --config.kind=examples/pard.py:Pard --config.num_draft=4 --export_dir=runs/pard/export

Expected and cost are the method's. ``sizes`` are arguments of its ``fresh``
(--config.sizes.layers=2), ``objective`` fields of its objective (--config.objective.keep=0.8), or
another one (--config.objective.name=mine.py:Mine); what is not there has the default of the class.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from specjax.cli.configs import config_of, variant_of
from specjax.train.config import DrafterConfig


def get_config(variant: str = "") -> ConfigDict:
    config = config_of(
        DrafterConfig,
        kind="",  # FILE.py:NAME, or a name that --import registers
        num_draft=4,
        sizes={},
        objective={},
        steps=1000,
        export_format="plain",
    )
    return variant_of(config, variant)
