"""Gemma 3, the text model (Gemma Team 2025, arXiv:2503.19786).

Five layers with a window and a RoPE of their own, then one that sees everything; norms before and
behind attention and MLP, and on the heads, all with a gain of 1 + w; a GELU; embeddings times the
square root of the width, which is rounded to the type of the weights.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from specjax.core.cache import Entry, Part
from specjax.core.types import Array
from specjax.models.config import (
    DecoderConfig,
    extended,
    read_decoder_config,
    write_decoder_config,
)
from specjax.models.layers.attention import MLP, Attention
from specjax.models.layers.decoder import Decoder
from specjax.models.layers.norm import ZeroCentredNorm
from specjax.models.layers.reading import Reading
from specjax.models.layers.residual import takes_residual
from specjax.models.layers.rope import Rope
from specjax.models.registry import register
from specjax.models.rope_config import read_rope, write_rope_scaling
from specjax.models.windows import read_windows

_GELU = ("gelu_pytorch_tanh",)
_FULL, _SLIDING = "full_attention", "sliding_attention"
# What Transformers' class assumes: published configs leave most of it out.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "tie_word_embeddings": True,
}


@dataclasses.dataclass(frozen=True)
class GemmaConfig(DecoderConfig):
    """``rope`` is that of layers that see everything."""

    local_rope: Rope = dataclasses.field(kw_only=True)  # of those with a window
    query_scalar: float = dataclasses.field(kw_only=True)  # scores are divided by its square root


class GemmaLayer(nnx.Module):
    def __init__(self, config: GemmaConfig, index: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        c = config
        eps = c.rms_norm_eps
        norm = functools.partial(ZeroCentredNorm, c.hidden_size, eps=eps, dtype=dtype, rngs=rngs)
        window = c.window_of(index)
        self.input_layernorm = norm()
        self.self_attn = Attention(
            c,
            head_norm=True,
            window=window,
            rope=c.rope if window is None else c.local_rope,
            scale=c.query_scalar**-0.5,
            norm=ZeroCentredNorm,
            dtype=dtype,
            rngs=rngs,
        )
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        self.mlp = MLP(c, act=gelu, dtype=dtype, rngs=rngs)
        self.post_feedforward_layernorm = norm()

    def init_entry(self, rows: int, slots: int, dtype: jnp.dtype) -> Entry:
        return self.self_attn.init_entry(rows, slots, dtype)

    @takes_residual("input_layernorm", "pre_feedforward_layernorm")
    def __call__(
        self, x: Array, entry: Any, before: Part | None, reading: Reading
    ) -> tuple[Array, Part]:
        mixed, part = self.self_attn(self.input_layernorm(x), entry, before, reading)
        x = x + self.post_attention_layernorm(mixed)
        out = self.mlp(self.pre_feedforward_layernorm(x))
        return x + self.post_feedforward_layernorm(out), part


def gelu(x: Array) -> Array:
    """By its tanh approximation."""
    return jax.nn.gelu(x, approximate=True)


@register("gemma3")
@register("gemma3_text")
class Gemma3(Decoder):
    norm_kind = ZeroCentredNorm
    small: ClassVar = {"sliding_window": 6, "sliding_window_pattern": 2, "query_pre_attn_scalar": 9}

    @staticmethod
    def make_layer(
        config: DecoderConfig, index: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> nnx.Module:
        assert isinstance(config, GemmaConfig)
        return GemmaLayer(config, index, dtype=dtype, rngs=rngs)

    @property
    def embed_scale(self) -> float:
        """What embeddings are multiplied by, rounded to the type of the weights."""
        dtype = self.embed_tokens.weight[...].dtype
        return float(np.asarray(self.config.hidden_size**0.5, dtype))

    def embed(self, tokens: Array) -> Array:
        return self.embed_scale * self.embed_tokens(tokens)

    @staticmethod
    def skipped(config: Any) -> tuple[str, ...]:
        """What reads images."""
        del config
        return r"(model\.)?vision_tower\..*", r"(model\.)?multi_modal_projector\..*"

    @staticmethod
    def read_config(raw: Mapping[str, Any]) -> GemmaConfig:
        raw = {**_DEFAULTS, **{k: v for k, v in raw.items() if v is not None}}
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            if raw.get(key):
                raise ValueError(f"config.json: {key}={raw[key]} is not supported.")
        if raw.get("use_bidirectional_attention"):
            raise ValueError("config.json: use_bidirectional_attention is not supported.")
        local, full = _ropes(raw)
        layers = raw["num_hidden_layers"]
        base = read_decoder_config(
            {**raw, "layer_types": None, "use_sliding_window": None}, acts=_GELU, rope=full
        )
        if raw.get("layer_types") is None:
            pattern = raw.get("sliding_window_pattern") or raw.get("_sliding_window_pattern") or 6
            kinds = [_SLIDING if (i + 1) % pattern else _FULL for i in range(layers)]
            raw["layer_types"] = kinds
        windows = read_windows({**raw, "use_sliding_window": None}, layers)
        scalar = float(raw["query_pre_attn_scalar"])
        return extended(GemmaConfig, base, windows=windows, local_rope=local, query_scalar=scalar)

    architecture = "Gemma3ForCausalLM"

    @classmethod
    def write_config(cls, config: DecoderConfig) -> dict[str, Any]:
        assert isinstance(config, GemmaConfig)
        settings = write_decoder_config(config, cls.architecture)
        del settings["hidden_act"]
        return {
            **settings,
            "model_type": "gemma3_text",
            "hidden_activation": _GELU[0],
            "query_pre_attn_scalar": config.query_scalar,
            "rope_local_base_freq": config.local_rope.theta,
            "rope_scaling": write_rope_scaling(config.rope),
        }


def _ropes(raw: Mapping[str, Any]) -> tuple[Rope, Rope]:
    """Of layers with a window, which no scaling concerns, and of the others."""
    said = raw.get("rope_parameters") or {}
    if _FULL in said or _SLIDING in said:  # as newer configs have it, a block a kind
        local, full = ({"rope_parameters": said.get(kind) or {}} for kind in (_SLIDING, _FULL))
        return read_rope({**raw, **local, "rope_theta": None}, 1e4), read_rope({**raw, **full}, 1e6)
    theta = raw.get("rope_local_base_freq") or 1e4
    return Rope(float(theta)), read_rope(raw, 1e6)
