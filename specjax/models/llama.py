"""Llama 2, 3, 3.1, 3.2 (Touvron et al. 2023, arXiv:2307.09288; Dubey et al. 2024, 2407.21783)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from specjax.core.cache import Entry, Part
from specjax.core.types import Array
from specjax.models.config import DecoderConfig, read_decoder_config, write_decoder_config
from specjax.models.layers.attention import MLP, Attention
from specjax.models.layers.decoder import Decoder
from specjax.models.layers.norm import RMSNorm
from specjax.models.layers.reading import Reading
from specjax.models.layers.residual import takes_residual
from specjax.models.registry import register


class LlamaLayer(nnx.Module):
    """Pre-norm attention, over a ``window`` if there is one (`Attention`), pre-norm gated MLP.

    ``attention`` and ``mlp`` are made here unless they are given.
    """

    head_norm = False

    def __init__(
        self,
        config: DecoderConfig,
        *,
        window: int | None = None,
        attention: nnx.Module | None = None,
        mlp: nnx.Module | None = None,
        norm: type[RMSNorm] = RMSNorm,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.input_layernorm = norm(config.hidden_size, eps=config.rms_norm_eps, **kwargs)
        self.self_attn: Any = attention or Attention(
            config, head_norm=self.head_norm, window=window, **kwargs
        )
        self.post_attention_layernorm = norm(config.hidden_size, eps=config.rms_norm_eps, **kwargs)
        self.mlp: Any = mlp or MLP(config, **kwargs)

    def init_entry(self, rows: int, slots: int, dtype: jnp.dtype) -> Entry:
        entry: Entry = self.self_attn.init_entry(rows, slots, dtype)
        return entry

    @takes_residual("input_layernorm", "post_attention_layernorm", into=("self_attn", "mlp"))
    def __call__(
        self, x: Array, entry: Any, before: Part | None, reading: Reading
    ) -> tuple[Array, Part]:
        mixed, part = self.self_attn(self.input_layernorm(x), entry, before, reading)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), part


@register("llama")
class Llama(Decoder):
    @staticmethod
    def make_layer(
        config: DecoderConfig, index: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> nnx.Module:
        return LlamaLayer(config, window=config.window_of(index), dtype=dtype, rngs=rngs)

    @staticmethod
    def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
        return read_decoder_config(raw)

    architecture = "LlamaForCausalLM"

    @classmethod
    def write_config(cls, config: DecoderConfig) -> dict[str, Any]:
        return {**write_decoder_config(config, cls.architecture), "mlp_bias": config.mlp_bias}
