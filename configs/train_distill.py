"""A small language model as a draft for the demo target, distilled from it (DistillSpec).

Expected: tau of 5 guesses over held-out text 2.2. Cost: 900 steps of 4,096 tokens; the run prints
tokens a second. The whole recipe, and what each stage of it brought: docs/demo_models.md.

  python -m experiments.train_drafter --config=configs/train_distill.py \\
      --workdir=runs/distill --export_dir=runs/distill/export

On-policy, every second micro-batch: --config.objective.on_policy=0.5.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from specjax.cli.configs import config_of, variant_of
from specjax.train.config import DrafterConfig


def get_config(variant: str = "") -> ConfigDict:
    config = config_of(
        DrafterConfig,
        kind="lm",
        num_draft=5,
        sizes={
            "model_type": "llama",
            "vocab_size": 4096,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        },
        objective={
            "divergence": "forward_kl",
            "cross_entropy": 0.1,
            "temperature": 1.0,
            "on_policy": 0.0,
            "on_policy_tokens": 32,
        },
        data={"seq_len": 512},
        optimizer="muon",
        peak_lr=4e-3,
        weight_decay=0.1,
        steps=900,
        accumulate=2,
    )
    return variant_of(config, variant)
