"""Target families, one a file, built from `layers`."""

from specjax.models import llama, qwen3  # register themselves
from specjax.models.config import DecoderConfig
from specjax.models.frozen import Frozen
from specjax.models.registry import FAMILIES, family

__all__ = ["FAMILIES", "DecoderConfig", "Frozen", "family", "llama", "qwen3"]
