"""A DSpark drafter for the demo target: 7 slots, a Markov head and a confidence head.

Expected: what little training brings, with and without a least confidence, is in
docs/benchmarks.md. Cost: a step over 64 blocks a row takes some seconds of a CPU core, as the laws
of target and draft are compared over the whole vocabulary; fewer --config.objective.anchors make it
cheaper.

  python -m experiments.train_drafter --config=configs/train_dspark.py \\
      --workdir=runs/dspark --export_dir=runs/dspark/export

On text that the target wrote itself (experiments.regenerate):
--config.data.train='("runs/regenerated.jsonl",)'.
"""

from __future__ import annotations

from ml_collections import ConfigDict, config_dict

from specjax.cli.configs import config_of, variant_of
from specjax.train.config import DrafterConfig


def get_config(variant: str = "") -> ConfigDict:
    config = config_of(
        DrafterConfig,
        kind="dspark",
        num_draft=7,
        sizes={
            "markov_rank": 64,
            "layers": 2,
            "num_taps": 3,
            "intermediate_size": 0,  # as in train_dflash.py
            "mask_token_id": config_dict.placeholder(int),  # None: the last one
            # Whether layers begin as the target's last ones. None: where those are dense.
            "from_target": config_dict.placeholder(bool),
        },
        objective={
            "anchors": 64,  # blocks a row, drawn anew every step
            "chunk": 16,  # blocks whose logits exist at once; 0: as many as have room
            # What the backward pass computes again: none, blocks, or auto: what has no room.
            "remat": "auto",
            "ce": 0.1,  # weight of the cross entropy with the text
            "l1": 0.9,  # weight of the distance between the target's law and the draft's
            "confidence": 1.0,  # weight of the confidence head's calibration
            "gamma": 4.0,  # decay of the weights over a block; 0: D-PACE (docs/demo_models.md)
        },
        optimizer="muon",
        peak_lr=2e-3,
        steps=2000,
        export_format="plain",
    )
    return variant_of(config, variant)
