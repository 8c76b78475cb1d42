"""Qwen3, dense (Yang et al. 2025, arXiv:2505.09388): Llama's block with a norm on each head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from specjax.models.config import DecoderConfig, read_decoder_config, write_decoder_config
from specjax.models.layers.decoder import Decoder
from specjax.models.llama import LlamaLayer
from specjax.models.registry import register


class Qwen3Layer(LlamaLayer):
    """RMSNorm over each query and key head, before the rotation."""

    head_norm = True


@register("qwen3")
class Qwen3(Decoder):
    @staticmethod
    def make_layer(
        config: DecoderConfig, index: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> nnx.Module:
        return Qwen3Layer(config, window=config.window_of(index), dtype=dtype, rngs=rngs)

    @staticmethod
    def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
        return read_decoder_config(raw, windows=True)

    architecture = "Qwen3ForCausalLM"

    @classmethod
    def write_config(cls, config: DecoderConfig) -> dict[str, Any]:
        return write_decoder_config(config, cls.architecture)
