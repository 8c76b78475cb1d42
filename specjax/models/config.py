"""The shape of a decoder-only transformer, and the reading of Hugging Face configs into it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self, TypeVar

from specjax.models import schema
from specjax.models.layers.rope import Rope
from specjax.models.rope_config import read_rope, write_rope_scaling
from specjax.models.windows import read_windows, write_windows

Config = TypeVar("Config", bound="DecoderConfig")

# The tap of the last layer's output before the final norm, which hidden_states do not hold.
UNNORMED = -1


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
    output_bias: bool | None = None  # of attention's output projection; None: as the others
    windows: tuple[int | None, ...] = ()  # of each layer; (): none slides
    # Each key/value head is kept this many times, so that a model axis larger than the number of
    # heads still has one a shard (`for_model_axis`).
    kv_repeat: int = 1

    def window_of(self, layer: int) -> int | None:
        """What the layer's attention sees; None: everything."""
        return self.windows[layer] if self.windows else None

    def for_model_axis(self, size: int) -> Self:
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


_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


# Where a config has none, and Transformers has another than its width over its heads.
_HEAD_DIM = {"qwen3": 128}


def flattened(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose text model stands in a block of its own, ``text_config``, as one without.

    What both say is the block's, but for what the whole is called and whether its head is tied.
    """
    text = raw.get("text_config")
    if not isinstance(text, Mapping):
        return dict(raw)
    if text.get("text_config") is not None:
        raise ValueError("config.json: text_config holds a text_config of its own; remove one.")
    kept = ("model_type", "architectures", "tie_word_embeddings")
    above = {k: v for k, v in raw.items() if v is not None and (k in kept or text.get(k) is None)}
    return {**text, **above}


def extended(kind: type[Config], base: DecoderConfig, **more: Any) -> Config:
    """A config of a family with fields of its own: those of ``base``, and ``more``."""
    shared = {f.name: getattr(base, f.name) for f in dataclasses.fields(DecoderConfig)}
    return kind(**{**shared, **more})


def read_decoder_config(
    raw: Mapping[str, Any],
    *,
    windows: bool = False,
    acts: tuple[str, ...] = ("silu", "swish"),
    rope: Rope | None = None,
) -> DecoderConfig:
    """Reads the keys that Llama-like Hugging Face configs share; null counts as absent.

    Args:
      raw: the parsed config.json.
      windows: they are read as Qwen's configs spell them (`read_windows`), or by the caller; else
        any that is on is refused.
      acts: the names of the family's activation.
      rope: None: read from ``raw``.

    Raises:
      ValueError: naming the key that is missing, impossible, contradictory or unsupported.
    """
    schema.check(raw, "config.json")
    for key in _REQUIRED:
        if raw.get(key) is None:
            raise ValueError(f"config.json: lacks {key}, {schema.TABLE[key].what}; add it.")
    for key in ("hidden_act", "hidden_activation"):
        if raw.get(key) not in (None, *acts):
            raise ValueError(
                f"config.json: {key}={raw[key]!r} is not supported (supported: {acts[0]})."
            )
    if not windows:
        _refuse_windows(raw)
    heads, kv_heads, head_dim = _heads(raw)
    return DecoderConfig(
        model_type=str(raw["model_type"]),
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(raw.get("rms_norm_eps") or 1e-6),
        rope=read_rope(raw) if rope is None else rope,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings")),
        max_position_embeddings=raw.get("max_position_embeddings") or 2048,
        attention_bias=bool(raw.get("attention_bias")),
        mlp_bias=bool(raw.get("mlp_bias")),
        windows=_sliding(raw) if windows else (),
    )


def _heads(raw: Mapping[str, Any]) -> tuple[int, int, int]:
    """Query heads, key/value heads, and their width. Raises ValueError if they do not fit."""
    heads = raw["num_attention_heads"]
    kv_heads = raw.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise ValueError(
            f"config.json: num_key_value_heads={kv_heads} does not divide "
            f"num_attention_heads={heads}."
        )
    head_dim = raw.get("head_dim") or _HEAD_DIM.get(raw.get("model_type", ""))
    if head_dim is None:
        if raw["hidden_size"] % heads:
            raise ValueError(
                f"config.json: num_attention_heads={heads} does not divide "
                f"hidden_size={raw['hidden_size']} and head_dim is not given."
            )
        head_dim = raw["hidden_size"] // heads
    if head_dim % 2:
        raise ValueError(f"config.json: head_dim={head_dim} must be even for rotary embedding.")
    return heads, kv_heads, head_dim


def _sliding(raw: Mapping[str, Any]) -> tuple[int | None, ...]:
    """The windows; () where there are none."""
    found = read_windows(raw, raw["num_hidden_layers"])
    return found if any(found) else ()


def _refuse_windows(raw: Mapping[str, Any]) -> None:
    windows = read_windows(raw, raw["num_hidden_layers"])
    sliding = [i for i, window in enumerate(windows) if window is not None]
    if sliding:
        raise ValueError(
            f"config.json: layer {sliding[0]} and {len(sliding) - 1} more attend to a window of "
            f"{windows[sliding[0]]} (use_sliding_window={raw.get('use_sliding_window')!r}), which "
            "is not supported here; use a model without windows."
        )


def write_decoder_config(config: DecoderConfig, architecture: str) -> dict[str, Any]:
    """The config.json that `read_decoder_config` reads, of a dense family."""
    settings: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.attention_bias,
    }
    if config.rope.scaling is not None:
        settings["rope_scaling"] = write_rope_scaling(config.rope)
    if config.rope.partial != 1:
        settings["partial_rotary_factor"] = config.rope.partial
    if config.windows:
        settings |= write_windows(config.windows)
    return settings


def dense_like(
    target: Any, model_type: str, *, layers: int, rope: Rope | None = None, **sizes: int | None
) -> DecoderConfig:
    """A dense decoder of a target's width, for a draft.

    Args:
      target: its config: of any family, it has at least ``vocab_size``, ``hidden_size``,
        ``num_layers`` and ``max_position_embeddings``.
      model_type: of the draft's layers.
      layers: of the draft.
      rope: None: the target's.
      **sizes: intermediate_size, num_heads, num_kv_heads and head_dim; None or 0: the target's.

    Raises:
      ValueError: naming the size that must be given, because the target has none such.
    """
    given: dict[str, Any] = {}
    for name in ("intermediate_size", "num_heads", "num_kv_heads", "head_dim"):
        given[name] = sizes.get(name) or getattr(target, name, None)
        if given[name] is None:
            kind = getattr(target, "model_type", type(target).__name__)
            raise ValueError(f"sizes.{name}: a {kind} model has none of its own; give the draft's.")
    rope = rope or getattr(target, "rope", None) or Rope(10000.0)
    rope = dataclasses.replace(rope, partial=1.0)  # a draft's heads are rotated whole
    return DecoderConfig(
        model_type=model_type,
        vocab_size=target.vocab_size,
        hidden_size=target.hidden_size,
        num_layers=layers,
        rms_norm_eps=getattr(target, "rms_norm_eps", 1e-6),
        rope=rope,
        tie_word_embeddings=False,
        max_position_embeddings=target.max_position_embeddings,
        **given,
    )
