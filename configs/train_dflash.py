"""A DFlash drafter for the demo target: blocks of 8, one parallel pass a cycle.

Expected: tau of 7 guesses over held-out text 2.8, predicted as measured; 3.8 where it goes on with
text that the target wrote itself. Cost: 2,000 steps of 1,024 tokens; the run prints tokens a
second. The whole recipe, and what each stage of it brought: docs/demo_models.md.

  python -m experiments.train_drafter --config=configs/train_dflash.py \\
      --workdir=runs/dflash --export_dir=runs/dflash/export

For blocks of another size: --config.num_draft=15. On text that the target wrote itself
(experiments.regenerate): --config.data.train='("runs/regenerated.jsonl",)'.
"""

from __future__ import annotations

from ml_collections import ConfigDict, config_dict

from specjax.cli.configs import config_of, variant_of
from specjax.train.config import DrafterConfig


def get_config(variant: str = "") -> ConfigDict:
    config = config_of(
        DrafterConfig,
        kind="dflash",
        num_draft=7,
        sizes={
            "layers": 2,
            "num_taps": 3,
            # 0: the target's, or that of init; fewer than init has: its largest neurons.
            "intermediate_size": 0,
            "mask_token_id": config_dict.placeholder(int),  # None: the last one
            # Whether layers begin as the target's last ones. None: where those are dense.
            "from_target": config_dict.placeholder(bool),
        },
        objective={
            "anchors": 64,  # blocks a row, drawn anew every step
            "chunk": 16,  # blocks whose logits exist at once; 0: as many as have room
            # What the backward pass computes again: none, blocks, or auto: what has no room.
            "remat": "auto",
            "ce": 1.0,  # weight of the cross entropy with the text
            "divergence": 0.0,  # weight of KL(target || draft)
            # Decay of the weights over a block; 0: D-PACE, which leaves the later guesses of a
            # young drafter untrained and is the better one to end with (docs/demo_models.md).
            "gamma": 4.0,
            "dpace_alpha": 0.5,
        },
        optimizer="muon",
        peak_lr=2e-3,
        steps=2000,
        export_format="zlab",
    )
    return variant_of(config, variant)
