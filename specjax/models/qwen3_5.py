"""Qwen3.5 and 3.6, dense and mixtures of experts: three layers of gated DeltaNet, one of attention.

Attention is gated, a quarter of each head is rotated, norms have a gain of 1 + w (but for that
within a DeltaNet layer). A mixture has a shared expert with a gate of its own. The text model
alone: towers for images and the head for several tokens (``mtp``) are other modules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
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
from specjax.models.layers.delta import DeltaConfig, GatedDeltaNet
from specjax.models.layers.experts import (
    Mixture,
    MixtureConfig,
    MixtureMLP,
    place_of_experts,
    used_share,
)
from specjax.models.layers.norm import ZeroCentredNorm
from specjax.models.layers.reading import Reading
from specjax.models.layers.residual import takes_residual
from specjax.models.places import Place
from specjax.models.registry import register
from specjax.models.rope_config import read_rope

_LINEAR, _FULL = "linear_attention", "full_attention"
_IMAGES = ("mrope_interleaved", "mrope_section")  # of positions in images: in text all are equal


@dataclasses.dataclass(frozen=True)
class Qwen35Config(MixtureConfig):
    """Of the dense ones all layers are ``dense_layers``."""

    delta: DeltaConfig = dataclasses.field(kw_only=True)
    full_layers: tuple[int, ...] = dataclasses.field(kw_only=True)  # those of attention

    def for_model_axis(self, size: int) -> Qwen35Config:
        if self.delta.key_heads % size:
            raise ValueError(
                f"The mesh's model axis has {size} devices, which does not divide this model's "
                f"linear_num_key_heads={self.delta.key_heads}; choose a divisor."
            )
        return super().for_model_axis(size)


class Qwen35Layer(nnx.Module):
    """Mixing along the text, then an MLP or a mixture, both behind a norm."""

    def __init__(self, config: Qwen35Config, index: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        c, kwargs = config, _made(dtype, rngs)
        self.input_layernorm = ZeroCentredNorm(c.hidden_size, eps=c.rms_norm_eps, **kwargs)
        self.is_full = index in c.full_layers
        if self.is_full:
            kinds: dict[str, Any] = {"head_norm": True, "norm": ZeroCentredNorm, "gated": True}
            self.self_attn = Attention(c, **kinds, **kwargs)
        else:
            self.linear_attn = GatedDeltaNet(c.delta, **kwargs)
        self.post_attention_layernorm = ZeroCentredNorm(c.hidden_size, eps=c.rms_norm_eps, **kwargs)
        self.mlp: Any = MLP(c, **kwargs)
        if c.is_mixture(index):
            shared: dict[str, Any] = {"shared": c.shared_width, "shared_gate": True}
            self.mlp = MixtureMLP(c, c.mixture, **shared, **kwargs)

    def _mixing(self) -> Any:
        return self.self_attn if self.is_full else self.linear_attn

    def init_entry(self, rows: int, slots: int, dtype: jnp.dtype) -> Entry:
        entry: Entry = self._mixing().init_entry(rows, slots, dtype)
        return entry

    @takes_residual("input_layernorm", "post_attention_layernorm", into=("self_attn", "mlp"))
    def __call__(
        self, x: Array, entry: Any, before: Part | None, reading: Reading
    ) -> tuple[Array, Part]:
        mixed, part = self._mixing()(self.input_layernorm(x), entry, before, reading)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), part


def _made(dtype: jnp.dtype, rngs: nnx.Rngs) -> dict[str, Any]:
    return {"dtype": dtype, "rngs": rngs}


@register("qwen3_5")
@register("qwen3_5_text")
class Qwen35(Decoder):
    norm_kind = ZeroCentredNorm
    used_share = staticmethod(used_share)
    small: ClassVar = {
        "full_attention_interval": 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 6,
        "linear_value_head_dim": 8,
        "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
    }

    @staticmethod
    def skipped(config: Any) -> tuple[str, ...]:
        """What reads images, and the head for further tokens, which is a drafter."""
        del config
        return r"model\.visual\..*", r"mtp\..*"

    @staticmethod
    def make_layer(
        config: DecoderConfig, index: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> nnx.Module:
        assert isinstance(config, Qwen35Config)
        return Qwen35Layer(config, index, dtype=dtype, rngs=rngs)

    @classmethod
    def make_nextn_layer(
        cls, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> nnx.Module:
        assert isinstance(config, Qwen35Config)
        return cls.make_layer(config, config.full_layers[-1], dtype=dtype, rngs=rngs)

    @classmethod
    def place_of(cls, config: Any, path: str, root: str = "model") -> str | Place:
        names = {
            ".mlp.router.": ".mlp.gate.",
            ".mlp.shared.": ".mlp.shared_expert.",
            ".mlp.shared_gate.": ".mlp.shared_expert_gate.",
        }
        for ours, theirs in names.items():
            path = path.replace(ours, theirs)
        if ".experts." in path:
            group, _, matrix = f"{root}.{path}".rpartition(".")
            return place_of_experts(group, config.mixture.num, matrix, fused_first=True)
        return super().place_of(config, path, root)

    @staticmethod
    def read_config(raw: Mapping[str, Any]) -> Qwen35Config:
        if raw.get("attn_output_gate") is False:
            raise ValueError("config.json: attn_output_gate=false is not supported.")
        rope = read_rope(raw, 1e7, partial=0.25, skipped=_IMAGES)
        layers, kinds = raw.get("num_hidden_layers") or 0, raw.get("layer_types")
        if kinds is None:
            every = raw.get("full_attention_interval") or 4
            kinds = [_LINEAR if (i + 1) % every else _FULL for i in range(layers)]
        if len(kinds) != layers or set(kinds) - {_LINEAR, _FULL}:
            raise ValueError(f"config.json: layer_types must be {layers} of {_LINEAR} and {_FULL}.")
        moe = raw.get("num_experts") is not None
        said = {**raw, "layer_types": None, "head_dim": raw.get("head_dim") or 256}
        if moe and raw.get("intermediate_size") is None:
            said["intermediate_size"] = raw.get("moe_intermediate_size")  # no layer is dense
        base = read_decoder_config(said, rope=rope)
        sizes = {
            "key_heads": raw.get("linear_num_key_heads") or 16,
            "value_heads": raw.get("linear_num_value_heads") or 32,
            "key_head_dim": raw.get("linear_key_head_dim") or 128,
            "value_head_dim": raw.get("linear_value_head_dim") or 128,
            "taps": raw.get("linear_conv_kernel_dim") or 4,
        }
        if sizes["value_heads"] % sizes["key_heads"]:
            raise ValueError(
                f"config.json: linear_num_key_heads={sizes['key_heads']} does not divide "
                f"linear_num_value_heads={sizes['value_heads']}."
            )
        only = raw.get("mlp_only_layers") or ()
        return extended(
            Qwen35Config,
            base,
            mixture=Mixture.read(raw, "num_experts") if moe else Mixture(1, 1, 1),
            dense_layers=tuple(i for i in range(layers) if i in only or not moe),
            shared_width=raw.get("shared_expert_intermediate_size") if moe else None,
            delta=DeltaConfig(
                hidden_size=base.hidden_size, rms_norm_eps=base.rms_norm_eps, **sizes
            ),
            full_layers=tuple(i for i, kind in enumerate(kinds) if kind == _FULL),
        )

    architecture = "Qwen3_5ForCausalLM"
    text_type = "qwen3_5_text"

    @classmethod
    def write_config(cls, config: DecoderConfig) -> dict[str, Any]:
        """That of the text model alone."""
        assert isinstance(config, Qwen35Config)
        settings = write_decoder_config(config, cls.architecture)
        rope = {"rope_type": "default", "rope_theta": config.rope.theta}
        rope |= {"partial_rotary_factor": settings.pop("partial_rotary_factor", 1.0)}
        del settings["rope_theta"]
        d, layers = config.delta, range(config.num_layers)
        settings |= {
            "model_type": cls.text_type,
            "layer_types": [_FULL if i in config.full_layers else _LINEAR for i in layers],
            "linear_num_key_heads": d.key_heads,
            "linear_num_value_heads": d.value_heads,
            "linear_key_head_dim": d.key_head_dim,
            "linear_value_head_dim": d.value_head_dim,
            "linear_conv_kernel_dim": d.taps,
            "rope_parameters": rope,
        }
        return settings


@register("qwen3_5_moe")
@register("qwen3_5_moe_text")
class Qwen35Moe(Qwen35):
    small: ClassVar = {
        **Qwen35.small,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
    }
    architecture = "Qwen3_5MoeForCausalLM"
    text_type = "qwen3_5_moe_text"

    @classmethod
    def write_config(cls, config: DecoderConfig) -> dict[str, Any]:
        assert isinstance(config, Qwen35Config)
        return {
            **super().write_config(config),
            "num_experts": config.mixture.num,
            "num_experts_per_tok": config.mixture.chosen,
            "moe_intermediate_size": config.mixture.width,
            "shared_expert_intermediate_size": config.shared_width,
            "mlp_only_layers": list(config.dense_layers),
        }
