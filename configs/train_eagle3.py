"""An EAGLE-3 drafter for the demo target, by the training-time test.

Expected: tau of 5 guesses over held-out text 1.35 after 150 steps; 3.3 where it goes on with text
that the target wrote itself. Cost: 1,500 steps of 1,024 tokens; the run prints tokens a second. The
whole recipe, and what each stage of it brought: docs/demo_models.md.

  python -m experiments.train_drafter --config=configs/train_eagle3.py \\
      --workdir=runs/eagle3 --export_dir=runs/eagle3/export
"""

from __future__ import annotations

from ml_collections import ConfigDict

from specjax.cli.configs import config_of, variant_of
from specjax.train.config import DrafterConfig


def get_config(variant: str = "") -> ConfigDict:
    config = config_of(
        DrafterConfig,
        kind="eagle3",
        num_draft=5,
        # draft_vocab_size: the tokens most frequent in the training data; left out: all of them.
        # intermediate_size: 0: the target's, or init's; fewer than init has: its largest neurons.
        sizes={"layers": 1, "draft_vocab_size": 2048, "intermediate_size": 0},
        objective={
            "decay": 0.8,  # of the weight of a step
            "divergence": "forward_kl",
            "chunk": 128,  # positions of a row whose logits exist at once
            # What the backward pass computes again: none, steps, or auto: what has no room.
            "remat": "auto",
        },
        steps=1500,
        export_format="safeailab",
    )
    return variant_of(config, variant)
