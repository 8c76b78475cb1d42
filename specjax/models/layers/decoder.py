"""What the dense families share: embedding, a stack of blocks, final norm, head."""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.core.cache import Block, Cache, empty_cache
from specjax.core.sharding import constrain
from specjax.core.types import Array
from specjax.models.config import DecoderConfig
from specjax.models.layers.attention import causal, valid_slots
from specjax.models.layers.linear import Linear, activation_dtype, linear, lookup
from specjax.models.layers.norm import RMSNorm
from specjax.models.layers.rope import Rotation, rotation


class Layer(Protocol):
    """One layer of a family: ``(x, rotate, visible, cached, before) -> (x, keys, values)``."""

    def __call__(
        self,
        x: Array,
        rotate: Rotation,
        visible: Array,
        cached: tuple[Array, Array, Array] | None,
        before: tuple[Array, Array] | None,
    ) -> tuple[Array, Array, Array]: ...


class Embed(nnx.Module):
    """The token embedding [V, D], also the head where the two are tied."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.hidden_size)
        init = 0.02 * jax.random.normal(rngs.params(), shape)
        self.weight = nnx.Param(init.astype(dtype), axes=("vocab", None))

    def __call__(self, tokens: Array) -> Array:
        return lookup(self.weight[...], tokens)


class Decoder(nnx.Module):
    """``(tokens, cache) -> (logits, features, block)``, used purely: it changes nothing.

    Attribute names follow the tensor names of the checkpoints: ``layers.3.mlp.up_proj.weight``.
    A family subclasses this and says only how one block is made (`make_layer`).
    """

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        self.embed_tokens = Embed(config, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            [self.make_layer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)]
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype, rngs=rngs)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(
                config.hidden_size,
                config.vocab_size,
                axes=("vocab", None),
                dtype=dtype,
                rngs=rngs,
            )

    @staticmethod
    def make_layer(config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module:
        raise TypeError("A model family says how its block is made.")

    def hidden(
        self,
        tokens: Array,
        cache: Cache | None,
        *,
        taps: tuple[int, ...] = (),
        before: Block | None = None,
        positions: Array | None = None,
        visible: Array | None = None,
    ) -> tuple[Array, Array | None, Block]:
        """Runs the stack on T tokens that follow the cache, and the block ``before`` them.

        Args:
          tokens: [B, T] int32.
          cache: what all of them see; None: nothing, the block is the whole sequence.
          taps: indices of hidden states to hand out, in the order of Transformers'
            ``hidden_states``: 0 is the embedding, i the output of layer i - 1, and the last one
            (the number of layers) is after the final norm.
          before: P tokens of the block that were fed earlier and are not in the cache yet.
          positions: [B, T] int32; by default behind the cache and the block before.
          visible: [B or 1, T, P + T] bool, what each token sees of the block; by default all of
            ``before`` and, of T, what is not later than itself.

        Returns:
          The final, normed hidden state [B, T, D]; the tapped ones side by side
          [B, T, len(taps) * D], or None where none was asked for; and keys and values of the T
          tokens.
        """
        num_tokens, num_before = tokens.shape[1], 0 if before is None else before.k[0].shape[2]
        if positions is None:
            start = jnp.zeros((tokens.shape[0],), jnp.int32) if cache is None else cache.length
            positions = start[:, None] + (num_before + jnp.arange(num_tokens))[None, :]
        if visible is None:
            visible = causal(num_tokens, num_before)
        rotate = rotation(self.config.rope, positions, self.config.head_dim)
        seen = None if cache is None else valid_slots(cache)

        x = constrain(self.embed_tokens(tokens), "batch", None, None)
        states = [x]
        keys: list[Array] = []
        values: list[Array] = []
        for i, layer in enumerate(self.layers):
            cached = None if cache is None else (cache.k[i], cache.v[i], seen)
            fed = None if before is None else (before.k[i], before.v[i])
            x, k, v = layer(x, rotate, visible, cached, fed)
            x = constrain(x, "batch", None, None)
            states, keys, values = [*states, x], [*keys, k], [*values, v]
        x = self.norm(x)
        states[-1] = x
        features = jnp.concatenate([states[t] for t in taps], axis=-1) if taps else None
        return x, features, Block(k=tuple(keys), v=tuple(values))

    def head(self, x: Array) -> Array:
        """[..., D] -> logits [..., V] float32."""
        tied = self.config.tie_word_embeddings
        weight = self.embed_tokens.weight if tied else self.lm_head.weight
        return constrain(linear(x, weight[...]), "batch", *[None] * (x.ndim - 2), "vocab")

    def __call__(
        self, tokens: Array, cache: Cache | None, *, taps: tuple[int, ...] = ()
    ) -> tuple[Array, Array | None, Block]:
        """``hidden`` and ``head``: logits [B, T, V] float32, features, block."""
        x, features, block = self.hidden(tokens, cache, taps=taps)
        return self.head(x), features, block

    def init_cache(self, rows: int, slots: int) -> Cache:
        """An empty cache, in the type of the activations."""
        c = self.config
        return empty_cache(
            rows=rows,
            slots=slots,
            layers=c.num_layers,
            kv_heads=c.num_kv_heads * c.kv_repeat,
            head_dim=c.head_dim,
            dtype=activation_dtype(self.norm.weight[...].dtype),
        )
