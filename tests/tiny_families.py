"""Tiny random models with layers of every kind, beside the families that are registered.

    target = tiny_families.model("mixed")            a `specjax.Model`: 4 layers, a kind each
    draft = tiny.near(target)                        a draft of the same kinds, often right
    out = specjax.generate(target, LM(draft, 3), tiny.prompts(3), max_new_tokens=24)

`KINDS` names them: "full", "ring" (windows of 6 tokens), "latent", "recurrent" (the delta rule),
and "mixed", one layer of each. The vocabulary is that of `tiny.prompts`, 31 tokens. Nothing is put
into `FAMILIES`, whose names other tests run through; `listed` does that for as long as it is open,
for what looks families up by the ``model_type`` of a config ("tiny-mixed").
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import jax.numpy as jnp
from flax import nnx

import specjax
from specjax.core.cache import Entry, Part
from specjax.core.types import Array
from specjax.lab.audit import targets
from specjax.models import FAMILIES
from specjax.models.config import DecoderConfig, read_decoder_config
from specjax.models.layers.attention import MLP, Attention
from specjax.models.layers.decoder import Decoder
from specjax.models.layers.delta import DeltaConfig, GatedDeltaNet
from specjax.models.layers.latent import LatentAttention, LatentConfig
from specjax.models.layers.norm import RMSNorm
from specjax.models.layers.reading import Reading

WINDOW = 6
KINDS: dict[str, tuple[str, ...]] = {
    name: (name,) * 2 for name in ("full", "ring", "latent", "recurrent")
}
KINDS["mixed"] = ("recurrent", "ring", "latent", "full")


def mixing(kind: str, config: DecoderConfig, **kwargs: Any) -> nnx.Module:
    """The layer that carries information from token to token."""
    c = config
    if kind == "recurrent":
        delta = DeltaConfig(c.hidden_size, 2, 4, 6, c.head_dim, 4, c.rms_norm_eps)
        return GatedDeltaNet(delta, **kwargs)
    if kind == "latent":
        sizes = (12, 6, c.head_dim, 4, c.head_dim)  # ranks of queries and keys, widths of a head
        return LatentAttention(LatentConfig(c.hidden_size, c.num_heads, *sizes, c.rope), **kwargs)
    window = WINDOW if kind == "ring" else None
    return Attention(c, head_norm=False, window=window, **kwargs)


class Layer(nnx.Module):
    """Llama's block around a layer of any kind."""

    def __init__(self, kind: str, config: DecoderConfig, **kwargs: Any):
        norm = {"eps": config.rms_norm_eps, **kwargs}
        self.input_layernorm = RMSNorm(config.hidden_size, **norm)
        self.mixing = mixing(kind, config, **kwargs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, **norm)
        self.mlp = MLP(config, **kwargs)

    def init_entry(self, rows: int, slots: int, dtype: jnp.dtype) -> Entry:
        return self.mixing.init_entry(rows, slots, dtype)

    def __call__(
        self, x: Array, entry: Any, before: Part | None, reading: Reading
    ) -> tuple[Array, Part]:
        mixed, part = self.mixing(self.input_layernorm(x), entry, before, reading)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), part


class Tiny(Decoder):
    """The kinds of layers follow from the ``model_type``: "tiny-mixed" is ``KINDS["mixed"]``."""

    @staticmethod
    def make_layer(
        config: DecoderConfig, index: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> nnx.Module:
        kinds = KINDS[config.model_type.removeprefix("tiny-")]
        return Layer(kinds[index % len(kinds)], config, dtype=dtype, rngs=rngs)

    @staticmethod
    def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
        return read_decoder_config(raw)


@functools.cache
def model(
    kind: str = "mixed",
    *,
    seed: int = 0,
    vocab: int = 31,
    layers: int | None = None,
    sharp: float = 6.0,
) -> specjax.Model:
    """A random one, as `tiny.model`: logits with a spread of about ``sharp``, float32."""
    raw = {
        **targets.SIZES,
        "model_type": f"tiny-{kind}",
        "vocab_size": vocab,
        "num_hidden_layers": layers or len(KINDS[kind]),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    module = Tiny(Tiny.read_config(raw), dtype=jnp.float32, rngs=nnx.Rngs(seed))
    return targets.loud(module, f"tiny-{kind}-{seed}", sharp, seed=seed)


@contextlib.contextmanager
def listed() -> Iterator[None]:
    """Inside, all of them are registered families."""
    with mock.patch.dict(FAMILIES, {f"tiny-{kind}": Tiny for kind in KINDS}):
        yield
