"""Llama 2, 3, 3.1, 3.2 (Touvron et al. 2023, arXiv:2307.09288; Dubey et al. 2024, 2407.21783)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from specjax.core.types import Array
from specjax.models.config import DecoderConfig, read_decoder_config
from specjax.models.layers.attention import MLP, Attention
from specjax.models.layers.decoder import Decoder
from specjax.models.layers.norm import RMSNorm
from specjax.models.layers.rope import Rotation
from specjax.models.registry import register


class LlamaLayer(nnx.Module):
    """Pre-norm attention, pre-norm gated MLP."""

    head_norm = False

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        norm: dict[str, Any] = {"eps": config.rms_norm_eps, "dtype": dtype, "rngs": rngs}
        self.input_layernorm = RMSNorm(config.hidden_size, **norm)
        self.self_attn = Attention(config, head_norm=self.head_norm, dtype=dtype, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, **norm)
        self.mlp = MLP(config, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Array,
        rotate: Rotation,
        visible: Array,
        cached: tuple[Array, Array, Array] | None,
        before: tuple[Array, Array] | None,
    ) -> tuple[Array, Array, Array]:
        mixed, k, v = self.self_attn(self.input_layernorm(x), rotate, visible, cached, before)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), k, v


@register("llama")
class Llama(Decoder):
    @staticmethod
    def make_layer(config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module:
        return LlamaLayer(config, dtype=dtype, rngs=rngs)

    @staticmethod
    def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
        return read_decoder_config(raw)
