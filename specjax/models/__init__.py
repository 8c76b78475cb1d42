"""Target families, one a file, built from `layers`."""

# They register themselves.
from specjax.models import (
    deepseek_v3,
    gemma3,
    gpt_oss,
    llama,
    mistral,
    qwen2,
    qwen3,
    qwen3_5,
    qwen3_moe,
)
from specjax.models.config import DecoderConfig
from specjax.models.frozen import Frozen
from specjax.models.registry import FAMILIES, family

__all__ = [
    "FAMILIES",
    "DecoderConfig",
    "Frozen",
    "deepseek_v3",
    "family",
    "gemma3",
    "gpt_oss",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_5",
    "qwen3_moe",
]
