"""An adapter for an early exit of the demo target.

Expected: tau of two guesses over held-out text rises from 1.22 to 1.40, and nothing is gained in
time, as the target is too small (docs/benchmarks.md). Cost: 20 minutes of two shared CPU cores.

  python -m experiments.train_drafter --config=configs/train_early_exit.py \\
      --workdir=runs/early_exit --export_dir=runs/early_exit/export
"""

from __future__ import annotations

from ml_collections import ConfigDict

from specjax.cli.configs import config_of, variant_of
from specjax.train.config import DrafterConfig


def get_config(variant: str = "") -> ConfigDict:
    config = config_of(
        DrafterConfig,
        kind="early_exit",
        num_draft=2,
        sizes={
            "depth": 1,  # layers of the target that run
            "rank": 320,  # of the adapter
        },
        objective={
            "divergence": "forward_kl",  # of the exit's law from the target's
            "cross_entropy": 0.0,  # its weight beside the divergence
            "temperature": 1.0,
            "chunk": 128,  # positions of a row whose logits exist at once
        },
        steps=600,
    )
    return variant_of(config, variant)
