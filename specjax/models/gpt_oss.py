"""gpt-oss (Agarwal et al. 2025, arXiv:2508.10925).

Every second layer sees a window, the first among them; every head has a sink (`ops.attend`); all
projections have biases. Of an expert's two inputs the gate is clamped from above and the other from
both sides, and 1 is added to the latter.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.core.types import Array
from specjax.models.config import (
    DecoderConfig,
    extended,
    read_decoder_config,
    write_decoder_config,
)
from specjax.models.layers.attention import Attention
from specjax.models.layers.decoder import Decoder
from specjax.models.layers.experts import Mixture, MixtureConfig, MixtureMLP, used_share
from specjax.models.layers.norm import LateRoundedNorm
from specjax.models.llama import LlamaLayer
from specjax.models.places import Part, Place, Turned, Whole
from specjax.models.registry import register
from specjax.models.rope_config import read_rope
from specjax.models.windows import read_windows

_ALPHA = 1.702
# What Transformers' class assumes of a config that has none.
_ROPE: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 32.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


@functools.cache
def clamped(limit: float) -> Any:
    """``(up + 1) gate sigmoid(1.702 gate)`` of clamped inputs; one function a limit."""

    def mix(gate: Array, up: Array) -> Array:
        gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
        return (up + 1) * gate * jax.nn.sigmoid(_ALPHA * gate)

    return mix


@register("gpt_oss")
class GptOss(Decoder):
    norm_kind = LateRoundedNorm
    used_share = staticmethod(used_share)
    small: ClassVar = {"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 6}

    @staticmethod
    def make_layer(
        config: DecoderConfig, index: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> nnx.Module:
        assert isinstance(config, MixtureConfig)
        window, norm = config.window_of(index), LateRoundedNorm
        attention = Attention(
            config, head_norm=False, window=window, sinks=True, dtype=dtype, rngs=rngs
        )
        mix = clamped(config.limit)
        mlp = MixtureMLP(config, config.mixture, mix=mix, dtype=dtype, rngs=rngs)
        return LlamaLayer(config, attention=attention, mlp=mlp, norm=norm, dtype=dtype, rngs=rngs)

    @classmethod
    def place_of(cls, config: Any, path: str, root: str = "model") -> str | Place:
        """Gate and up are every second row of one tensor; matrices of experts are [in, out]."""
        group, _, name = f"{root}.{path}".rpartition(".")
        if not group.endswith(".experts"):
            return super().place_of(config, path, root)
        matrix, _, bias = name.partition("_bias")
        bias = "_bias" if name.endswith("_bias") else ""
        if matrix == "down_proj":
            place: Place = Whole(f"{group}.down_proj{bias}")
        else:
            number, axis = ("gate_proj", "up_proj").index(matrix), 1 if bias else 2
            place = Part(f"{group}.gate_up_proj{bias}", axis, number, 2, strided=True)
        return place if bias else Turned(place)

    @staticmethod
    def read_config(raw: Mapping[str, Any]) -> MixtureConfig:
        layers, window = raw.get("num_hidden_layers") or 0, raw.get("sliding_window", 128)
        kinds = ("sliding_attention", "full_attention")
        if not raw.get("rope_scaling") and not raw.get("rope_parameters"):
            raw = {**raw, "rope_scaling": _ROPE}
        said = {
            **raw,
            "layer_types": raw.get("layer_types") or [kinds[i % 2] for i in range(layers)],
            "sliding_window": window,
            "use_sliding_window": None,
            "attention_bias": True,
            "rms_norm_eps": raw.get("rms_norm_eps") or 1e-5,
        }
        base = read_decoder_config(
            {**said, "layer_types": None, "head_dim": raw.get("head_dim") or 64},
            rope=read_rope(raw, 150000.0),
        )
        mixture = Mixture.read(
            raw, "num_local_experts", width=base.intermediate_size, score="chosen", bias=True
        )
        windows, limit = read_windows(said, layers), float(raw.get("swiglu_limit") or 7.0)
        return extended(MixtureConfig, base, windows=windows, mixture=mixture, limit=limit)

    architecture = "GptOssForCausalLM"

    @classmethod
    def write_config(cls, config: DecoderConfig) -> dict[str, Any]:
        assert isinstance(config, MixtureConfig)
        return {
            "rope_scaling": {"rope_type": "default"},
            **write_decoder_config(config, cls.architecture),
            "num_local_experts": config.mixture.num,
            "num_experts_per_tok": config.mixture.chosen,
            "swiglu_limit": config.limit,
        }
