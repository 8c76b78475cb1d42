"""The two demo models: ``--config=configs/train_lm.py:target`` and ``...:draft``.

Expected: held-out loss 3.10 nats a token (target) and 4.06 (draft, which is distilled). Cost: 50
and 15 minutes of steps on two busy CPU cores with AMX, 1,800 and 4,200 tokens/s.

  python -m experiments.train_lm --config=configs/train_lm.py:target \\
      --workdir=runs/target --export_dir=specjax/demo/target

docs/demo_models.md has the whole recipe and its results.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from specjax.cli.configs import config_of, variant_of
from specjax.train.config import LMConfig


def get_config(variant: str = "target") -> ConfigDict:
    if variant not in ("target", "continued", "draft", "quick"):
        raise ValueError(f"there is no variant {variant!r}: target, continued, draft and quick.")
    config = config_of(
        LMConfig,
        model={
            "model_type": "llama",
            "vocab_size": 4096,
            "hidden_size": 320,
            "intermediate_size": 1024,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        },
        optimizer="muon",
        peak_lr=3e-3,
        weight_decay=0.1,
        steps=1300,
        accumulate=2,
    )
    if variant == "continued":
        config.update(
            init="specjax/demo/target",
            tokenizer="specjax/demo/target",
            peak_lr=1.5e-3,
            steps=1700,
            seed=1,
        )
    if variant == "draft":
        config.model.update(
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=2,
            head_dim=32,
        )
        config.update(
            tokenizer="specjax/demo/target",
            teacher="specjax/demo/target",
            distill=0.9,
            peak_lr=4e-3,
            steps=900,
        )
    return variant_of(config, "quick" if variant == "quick" else "")
