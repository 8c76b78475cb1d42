"""The network of EAGLE-3 (Li et al. 2025, arXiv:2503.01840) and EAGLE-3.1.

It guesses from pairs: the target's features of one token and the token after it, fused features
first, its own output in their place once the guesses are ahead of the target.

    g      = W_fc [h_1 ; ... ; h_K]                      tapped states of a token, fused
    x      = g where the target has been, else the state that the step before fed back
    x'     = x + W_o Attn([ norm_in(e) ; norm_hid(x) ])  e: the embedding of the token after
    x''    = x' + MLP(norm_post(x'))                     further layers are ordinary
    logits = W_head norm(x'')                            over the draft's vocabulary
    fed back: x'', or norm(x'') (3.1)

Attention is grouped-query attention, or latent attention as DeepSeek-V3 has it (Kimi's drafts, in
the layout of vLLM's and SGLang's ``Eagle3DeepseekV2ForCausalLM``): the entries of the cache are of
its kind. Decoding looks back at a cache, training at earlier steps of the same columns; everything
else is the same code.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from specjax.core.cache import Block, Cache, Part, empty
from specjax.core.ops import activation_dtype, likeliest, linear
from specjax.core.types import Array
from specjax.core.view import View
from specjax.models.config import DecoderConfig
from specjax.models.layers.attention import MLP, Attention
from specjax.models.layers.decoder import Embed
from specjax.models.layers.latent import LatentAttention, LatentConfig
from specjax.models.layers.linear import Linear
from specjax.models.layers.norm import RMSNorm
from specjax.models.layers.placed import Placed
from specjax.models.layers.reading import Reading
from specjax.models.layers.residual import (
    formed,
    given_to,
    pin,
    side_by_side,
    states_of,
    takes_residual,
)
from specjax.models.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Eagle3Config:
    """Sizes, and the switches in which published drafts differ."""

    backbone: DecoderConfig  # of the draft: its sizes, rope, eps, biases; the target's vocabulary
    taps: tuple[int, ...]  # indices into Transformers' hidden_states of the target, or `UNNORMED`
    target_hidden_size: int
    draft_vocab_size: int  # rows of the head
    norm_before_residual: bool = False  # the residual of layer 0 is the normed state
    norm_before_fc: bool = False  # one norm over the concatenated taps
    fc_norm: bool = False  # 3.1: a norm for each tap
    norm_output: bool = False  # 3.1: the normed state is fed back
    own_embedding: bool = False
    own_head: bool = True  # else the target's
    latent: LatentConfig | None = None  # of latent attention; None: grouped queries
    window: int | None = None  # pairs that one sees, itself included; None: all


class Eagle3Layer(nnx.Module):
    """Pre-norm attention and gated MLP; the first layer also takes an embedding."""

    def __init__(self, config: Eagle3Config, *, first: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        c = config.backbone
        norm: dict[str, Any] = {"eps": c.rms_norm_eps, "dtype": dtype, "rngs": rngs}
        self.input_layernorm = RMSNorm(c.hidden_size, **norm)
        if first:
            self.hidden_norm = RMSNorm(c.hidden_size, **norm)
        wide = 2 * c.hidden_size if first else c.hidden_size
        fed: dict[str, Any] = {"in_features": wide, "dtype": dtype, "rngs": rngs}
        self.self_attn: Any
        if config.latent is None:
            self.self_attn = Attention(c, head_norm=False, window=config.window, **fed)
        else:
            self.self_attn = LatentAttention(config.latent, **fed)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, **norm)
        self.mlp = MLP(c, dtype=dtype, rngs=rngs)
        self.first, self.norm_before_residual = first, config.norm_before_residual

    @takes_residual(
        "hidden_norm", "input_layernorm", "post_attention_layernorm", into=("self_attn", "mlp")
    )
    def __call__(
        self, x: Array, embedded: Array, entry: Any, before: Part | None, reading: Reading
    ) -> tuple[Array, Part]:
        """States and embeddings [B, T, D] -> states, and what ``entry`` must commit."""
        if self.first:
            normed = self.hidden_norm(x)
            fed = side_by_side(self.input_layernorm(embedded), normed)
            x = formed(normed) if self.norm_before_residual else x
        else:
            fed = self.input_layernorm(x)
        mixed, part = self.self_attn(fed, entry, before, reading)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), part


class Eagle3Net(Placed):
    """Attribute names are tensor names; layer 0 is the ``midlayer`` of the original files."""

    def __init__(self, config: Eagle3Config, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        c = config.backbone
        self.config = config
        norm: dict[str, Any] = {"eps": c.rms_norm_eps, "dtype": dtype, "rngs": rngs}
        num_taps, width = len(config.taps), config.target_hidden_size
        if config.norm_before_fc:
            self.input_norm = RMSNorm(num_taps * width, **norm)
        if config.fc_norm:
            self.fc_norm = nnx.List([RMSNorm(width, **norm) for _ in range(num_taps)])
        axes = ("fused", None)
        self.fc = Linear(num_taps * width, c.hidden_size, axes=axes, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            [Eagle3Layer(config, first=i == 0, dtype=dtype, rngs=rngs) for i in range(c.num_layers)]
        )
        self.norm = RMSNorm(c.hidden_size, **norm)
        if config.own_head:
            rows = config.draft_vocab_size
            self.lm_head = Linear(c.hidden_size, rows, axes=("vocab", None), dtype=dtype, rngs=rngs)
        if config.own_embedding:
            self.embed_tokens = Embed(c, dtype=dtype, rngs=rngs)

    @property
    def dtype(self) -> jnp.dtype:
        """The type of states and cache."""
        return activation_dtype(self.norm.weight[...].dtype, self.platform)

    def fuse(self, features: Array) -> Array:
        """Tapped states side by side [B, T, K * D_target] -> g [B, T, D]."""
        features = features.astype(self.dtype)
        if self.config.norm_before_fc:
            features = self.input_norm(features)
        if self.config.fc_norm:
            parts = jnp.split(features, len(self.fc_norm), axis=-1)
            parts = [norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)]
            features = jnp.concatenate(parts, axis=-1)
        return self.constrain(self.fc(features), "batch", None, None)

    def __call__(
        self, x: Array, embedded: Array, cache: Cache, view: View, before: Block | None = None
    ) -> tuple[Array, Array, Block]:
        """One pass over T pairs behind the cache, and behind those of the block ``before`` them.

        Args:
          x: [B, T, D], fused features or states that were fed back.
          embedded: [B, T, D], the tokens after them.
          cache: of pairs.
          view: where the pairs stand, and what they see of the block.

        Returns:
          The states to feed back [B, T, D], those for the head [B, T, D], what to commit.
        """
        reading = Reading(cache.length, view)
        pinned = lambda x: self.constrain(x, "batch", None, None)
        embedded = pinned(embedded.astype(x.dtype))
        block: list[Part] = []
        for i, layer in enumerate(self.layers):
            fed = None if before is None else before[i]
            x = given_to(layer, x, self.platform)
            x, part = layer(x, embedded, cache.layers[i], fed, reading)
            x = pin(pinned, x)
            block = [*block, part]
        normed = self.norm(given_to(self.norm, x, self.platform))
        fed_back = normed if self.config.norm_output else states_of(x)
        return fed_back, normed, tuple(block)

    def head(self, normed: Array, vocabulary: Vocabulary | None = None) -> Array:
        """[..., D] -> logits [..., V_draft] float32; of the target where it has no head."""
        if not self.config.own_head:
            assert vocabulary is not None
            return vocabulary.head(normed)
        logits = linear(normed, self.lm_head.weight.get_value(), platform=self.platform)
        return self.constrain(logits, "batch", *[None] * (logits.ndim - 2), "vocab")

    def likeliest(self, normed: Array, vocabulary: Vocabulary, names: Array | None) -> Array | None:
        """The largest entry of `head`, [...] int32, by ``names``; None: see `ops.likeliest`."""
        if type(self).head is not Eagle3Net.head:
            return None
        if not self.config.own_head:
            return vocabulary.likeliest(normed, names)
        return likeliest(normed, self.lm_head.weight.get_value(), names, platform=self.platform)

    def init_cache(self, rows: int, slots: int) -> Cache:
        """An empty cache of pairs, in the type of the activations."""
        layers: list[Any] = list(self.layers)
        return empty(tuple(x.self_attn.init_entry(rows, slots, self.dtype) for x in layers), rows)
