"""Grouped-query attention over a static cache and the block of tokens being fed.

The cache is read, never written, here: scores over the cached slots and scores over the block are
two products that share one softmax. The keys and values of the block are returned, and committed
when the verdict is known (`core.cache`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.core.cache import Cache
from specjax.core.platform import num_cores
from specjax.core.sharding import constrain
from specjax.core.types import Array
from specjax.models.config import DecoderConfig
from specjax.models.layers.linear import Linear
from specjax.models.layers.norm import RMSNorm
from specjax.models.layers.rope import Rotation

_MASKED = -1e30  # finite, so that a row that sees nothing has no NaN


def causal(num_tokens: int, num_before: int = 0) -> Array:
    """[1, T, P + T] bool: token i sees the P tokens of the block before it and tokens 0..i."""
    seen, index = jnp.arange(num_before + num_tokens), jnp.arange(num_tokens)
    return (seen[None, :] <= num_before + index[:, None])[None]


def valid_slots(cache: Cache) -> Array:
    """[B, 1, S] bool: the slots of ``cache`` that hold a committed token."""
    return jnp.arange(cache.num_slots)[None, None, :] < cache.length[:, None, None]


def attend(
    q: Array,
    k: Array,
    v: Array,
    visible: Array,
    cached: tuple[Array, Array, Array] | None,
) -> Array:
    """Softmax attention of the block's queries over the cache and the block.

    Args:
      q: [B, N, T, H], of the block's last T tokens.
      k: [B, G, U, H], of the whole block; query head n reads key/value head ``n // (N / G)``.
      v: [B, G, U, H].
      visible: [B or 1, T, U] bool, which tokens of the block each query sees.
      cached: keys [B, G, S, H], values [B, G, S, H] and which slots each query sees, [B, 1 or T, S]
        bool; None where the block is the whole sequence.

    Returns:
      [B, N, T, H] in the type of ``q``. Scores and softmax are float32.
    """
    rows, heads, num_tokens, head_dim = q.shape
    groups, dtype = k.shape[1], q.dtype
    repeats = heads // groups
    q = q.reshape(rows, groups, repeats * num_tokens, head_dim)
    scale = jnp.float32(head_dim**-0.5)

    def scores(q: Array, keys: Array, mask: Array) -> Array:
        """[B, G, R * T, S]: ``mask`` is [B or 1, T or 1, S]."""
        # Keys on the left: a transposed right-hand side would be a copy of the cache on CPU.
        dots = jnp.einsum("bgsh,bgmh->bgsm", keys, q, preferred_element_type=jnp.float32)
        dots = dots.swapaxes(2, 3).reshape(rows, groups, repeats, num_tokens, -1)
        masked = jnp.where(mask[:, None, None], scale * dots, _MASKED)
        return masked.reshape(rows, groups, repeats * num_tokens, -1)

    def weighted(weights: Array, values: Array) -> Array:
        return jnp.einsum(
            "bgms,bgsh->bgmh",
            weights.astype(values.dtype),
            values,
            preferred_element_type=jnp.float32,
        )

    new = scores(q, k, visible)
    top = new.max(-1, keepdims=True)
    if cached is None:
        new = jnp.exp(new - top)
        out = weighted(new / new.sum(-1, keepdims=True), v)
    else:
        cached_k, cached_v, seen = cached
        old = scores(q, cached_k, seen)
        top = jnp.maximum(top, old.max(-1, keepdims=True))
        if num_cores() > 1 and 4 * repeats * num_tokens > head_dim:
            # Many queries: forming the scores again, once their largest is known, moves fewer bytes
            # than keeping them in main memory. (The barrier makes it another product.)
            top, q = jax.lax.optimization_barrier((top, q))
            old = scores(q, cached_k, seen)
        old, new = jnp.exp(old - top), jnp.exp(new - top)
        total = old.sum(-1, keepdims=True) + new.sum(-1, keepdims=True)
        # Stale slots have weight exactly 0. (Their values must be finite: masking the values too
        # would copy the cache.)
        out = (weighted(old, cached_v) + weighted(new, v)) / total
    return out.reshape(rows, heads, num_tokens, head_dim).astype(dtype)


class Attention(nnx.Module):
    """Projections, rotation, attention, output projection.

    ``head_norm`` makes the norm that some families apply to each query and key head;
    ``in_features`` is the width of the input where it is not the model's.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        head_norm: bool,
        in_features: int | None = None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        c = config
        width = c.hidden_size if in_features is None else in_features
        kwargs: dict[str, Any] = {"bias": c.attention_bias, "dtype": dtype, "rngs": rngs}
        q_width, kv_width = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        self.q_proj = Linear(width, q_width, axes=("heads", None), **kwargs)
        # Key/value heads that are repeated to reach the model axis come from replicated weights.
        kv_axis = "kv_heads" if c.kv_repeat == 1 else None
        self.k_proj = Linear(width, kv_width, axes=(kv_axis, None), **kwargs)
        self.v_proj = Linear(width, kv_width, axes=(kv_axis, None), **kwargs)
        self.o_proj = Linear(q_width, c.hidden_size, axes=(None, "heads"), **kwargs)
        if head_norm:
            norm: dict[str, Any] = {"eps": c.rms_norm_eps, "dtype": dtype, "rngs": rngs}
            self.q_norm = RMSNorm(c.head_dim, **norm)
            self.k_norm = RMSNorm(c.head_dim, **norm)
        self.head_norm = head_norm
        self.config = c

    def __call__(
        self,
        x: Array,
        rotate: Rotation,
        visible: Array,
        cached: tuple[Array, Array, Array] | None,
        before: tuple[Array, Array] | None,
    ) -> tuple[Array, Array, Array]:
        """[B, T, D] -> ([B, T, D], keys [B, G, T, H], values [B, G, T, H]).

        ``before`` holds keys and values [B, G, P, H] of the block's tokens that were fed earlier.
        """
        c = self.config
        q = split_heads(self.q_proj(x), c.num_heads)
        k = split_heads(self.k_proj(x), c.num_kv_heads)
        v = split_heads(self.v_proj(x), c.num_kv_heads)
        if self.head_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q), rotate(k)
        if c.kv_repeat > 1:
            k, v = jnp.repeat(k, c.kv_repeat, axis=1), jnp.repeat(v, c.kv_repeat, axis=1)
        q = constrain(q, "batch", "heads", None, None)
        k = constrain(k, "batch", "kv_heads", None, None)
        v = constrain(v, "batch", "kv_heads", None, None)
        all_k, all_v = k, v
        if before is not None:
            all_k = jnp.concatenate([before[0], k], axis=2)
            all_v = jnp.concatenate([before[1], v], axis=2)
        out = attend(q, all_k, all_v, visible, cached)
        rows, _, num_tokens, _ = out.shape
        out = out.swapaxes(1, 2).reshape(rows, num_tokens, -1)
        return self.o_proj(out), k, v


def split_heads(x: Array, heads: int) -> Array:
    """[B, T, N * H] -> [B, N, T, H]."""
    rows, num_tokens, _ = x.shape
    return x.reshape(rows, num_tokens, heads, -1).swapaxes(1, 2)


class MLP(nnx.Module):
    """``down(silu(gate x) * up x)`` (SwiGLU, Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        wide, width = config.intermediate_size, config.hidden_size
        kwargs: dict[str, Any] = {"bias": config.mlp_bias, "dtype": dtype, "rngs": rngs}
        self.gate_proj = Linear(width, wide, axes=("mlp", None), **kwargs)
        self.up_proj = Linear(width, wide, axes=("mlp", None), **kwargs)
        self.down_proj = Linear(wide, width, axes=(None, "mlp"), **kwargs)

    def __call__(self, x: Array) -> Array:
        """[B, T, D] -> [B, T, D]."""
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))
