"""A head for further tokens (MTP) for a target, or several: trained anew, or fine-tuned.

Expected: tau of 3 guesses over held-out text well above 1 after some hundred steps; the head begins
as the target's last layer. Cost: a step is one of the target's forward passes and three of one
layer; the run prints tokens a second.

  python -m experiments.train_drafter --config=configs/train_mtp.py \\
      --workdir=runs/mtp --export_dir=runs/mtp/export

--config.init=DIR goes on with the head in the files of DIR, the target's own among them.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from specjax.cli.configs import config_of, variant_of
from specjax.train.config import DrafterConfig


def get_config(variant: str = "") -> ConfigDict:
    config = config_of(
        DrafterConfig,
        kind="mtp",
        num_draft=3,
        sizes={
            "heads": 1,  # one a guess; the last is run again for further ones
            "recycle": "",  # what a step feeds on: "normed" or "raw" states; "": as is usual
        },
        objective={
            "decay": 0.8,  # of the weight of a step
            "divergence": "forward_kl",
            "chunk": 128,  # positions of a row whose logits exist at once
            # What the backward pass computes again: none, steps, or auto: what has no room.
            "remat": "auto",
        },
        steps=1000,
        export_format="mtp",
    )
    return variant_of(config, variant)
