"""The shape of a decoder-only transformer, and the reading of Hugging Face configs into it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from specjax.models.layers.rope import LinearScaling, Llama3Scaling, Rope, YarnScaling


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and constants shared by the dense families. Hashable: it is compiled in."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: Rope
    tie_word_embeddings: bool
    max_position_embeddings: int
    attention_bias: bool = False
    mlp_bias: bool = False
    # Each key/value head is kept this many times, so that a model axis larger than the number of
    # heads still has one a shard (`for_model_axis`).
    kv_repeat: int = 1

    def for_model_axis(self, size: int) -> DecoderConfig:
        """The config on a mesh whose model axis has ``size`` devices.

        Raises:
          ValueError: if ``size`` does not divide what it must divide.
        """
        if size == 1:
            return self
        for field in ("num_heads", "intermediate_size", "vocab_size"):
            if getattr(self, field) % size:
                raise ValueError(
                    f"The mesh's model axis has {size} devices, which does not divide this "
                    f"{self.model_type} model's {field}={getattr(self, field)}; choose a divisor."
                )
        if self.num_kv_heads % size == 0:
            return self
        if size % self.num_kv_heads:
            raise ValueError(
                f"The mesh's model axis has {size} devices, which neither divides nor "
                f"is a multiple of this model's num_key_value_heads={self.num_kv_heads}; choose "
                "another size."
            )
        return dataclasses.replace(self, kv_repeat=size // self.num_kv_heads)


def read_rope(raw: Mapping[str, Any], default_theta: float = 10000.0) -> Rope:
    """Reads both spellings: ``rope_theta`` + ``rope_scaling``, and ``rope_parameters``.

    Raises:
      ValueError: on a kind of scaling that is not implemented.
    """
    scaling = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    if float(scaling.get("partial_rotary_factor", raw.get("partial_rotary_factor")) or 1) != 1:
        raise ValueError("config.json: partial_rotary_factor other than 1 is not supported.")
    theta = float(scaling.get("rope_theta", raw.get("rope_theta", default_theta)))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return Rope(theta)
    if kind == "llama3":
        fields = [f.name for f in dataclasses.fields(Llama3Scaling)]
        missing = [f for f in fields if f not in scaling]
        if missing:
            raise ValueError(f"config.json: llama3 RoPE scaling lacks {', '.join(missing)}.")
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        if high <= low:
            raise ValueError(f"config.json: high_freq_factor {high} must exceed {low}.")
        return Rope(
            theta,
            Llama3Scaling(
                float(scaling["factor"]),
                low,
                high,
                int(scaling["original_max_position_embeddings"]),
            ),
        )
    if kind in ("linear", "yarn") and not float(scaling.get("factor") or 0) >= 1:
        raise ValueError(f"config.json: {kind} RoPE scaling needs a factor of at least 1.")
    if kind == "linear":
        return Rope(theta, LinearScaling(float(scaling["factor"])))
    if kind == "yarn":
        return Rope(theta, _read_yarn(scaling, raw))
    raise ValueError(
        f"config.json: RoPE scaling {kind!r} is not supported (supported: default, linear, llama3, "
        "yarn)."
    )


def _read_yarn(scaling: Mapping[str, Any], raw: Mapping[str, Any]) -> YarnScaling:
    fields = {f.name for f in dataclasses.fields(YarnScaling)}
    known = {*fields, "rope_type", "type", "rope_theta", "partial_rotary_factor"}
    if unknown := sorted(set(scaling) - known):
        raise ValueError(f"config.json: yarn RoPE scaling has unknown keys: {', '.join(unknown)}.")
    values = {k: v for k, v in scaling.items() if k in fields and v is not None}
    original = values.pop("original_max_position_embeddings", raw.get("max_position_embeddings"))
    if not original:
        raise ValueError("config.json: yarn RoPE scaling lacks original_max_position_embeddings.")
    return YarnScaling(original_max_position_embeddings=int(original), **values)


def read_decoder_config(
    raw: Mapping[str, Any], *, unsupported: Mapping[str, tuple[Any, ...]] = {}
) -> DecoderConfig:
    """Reads the keys that Llama-like Hugging Face configs share.

    Args:
      raw: the parsed config.json.
      unsupported: per key, the only values that are supported; others are refused. An absent key
        is accepted.

    Raises:
      ValueError: naming the key that is missing, contradictory or unsupported.
    """
    required = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    )
    for key in required:
        value = raw.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"config.json: {key} must be a positive integer, not {value!r}.")
    allowed: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu", "swish"), **unsupported}
    for key, values in allowed.items():
        if key in raw and raw[key] not in values:
            raise ValueError(
                f"config.json: {key}={raw[key]!r} is not supported for model_type "
                f"{raw.get('model_type')!r} (supported: {', '.join(map(repr, values))})."
            )
    if raw.get("quantization_config"):
        raise ValueError("config.json: quantization_config is not supported; use full weights.")
    heads = raw["num_attention_heads"]
    kv_heads = raw.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise ValueError(
            f"config.json: num_key_value_heads={kv_heads} does not divide "
            f"num_attention_heads={heads}."
        )
    head_dim = raw.get("head_dim")
    if head_dim is None:
        if raw["hidden_size"] % heads:
            raise ValueError(
                f"config.json: num_attention_heads={heads} does not divide "
                f"hidden_size={raw['hidden_size']} and head_dim is not given."
            )
        head_dim = raw["hidden_size"] // heads
    if head_dim % 2:
        raise ValueError(f"config.json: head_dim={head_dim} must be even for rotary embedding.")
    return DecoderConfig(
        model_type=str(raw["model_type"]),
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope=read_rope(raw),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        max_position_embeddings=int(raw.get("max_position_embeddings", 2048)),
        attention_bias=bool(raw.get("attention_bias", False)),
        mlp_bias=bool(raw.get("mlp_bias", False)),
    )
