"""Grouped-query attention over a cache and the block of tokens being fed, under one softmax.

The cache is read, never written, here: scores over the cached slots and scores over the block are
two products that share one softmax.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from specjax.core.platform import num_cores, platform
from specjax.core.types import Array

_MASKED = -1e30  # finite, so that a row that sees nothing has no NaN

Parts = Array | tuple[Array, ...]  # queries or keys whose scores add up


def attend(
    q: Parts,
    k: Parts,
    v: Array,
    visible: Array,
    cached: tuple[Parts, Array, Array] | None,
    *,
    scale: float | None = None,
) -> Array:
    """Softmax attention of the block's queries over the cache and the block.

    Queries and keys may come in parts whose scores add up, as those of latent attention do.

    Args:
      q: [B, N, T, H], of the block's last T tokens; or a tuple of parts of different widths.
      k: [B, G, U, H], of the whole block; query head n reads key/value head ``n // (N / G)``.
      v: [B, G, U, Hv].
      visible: [B or 1, T, U] bool, which tokens of the block each query sees.
      cached: keys [B, G, S, H], values [B, G, S, Hv] and which slots each query sees,
        [B, 1 or T, S] bool; None where the block is the whole sequence.
      scale: of the scores; None: ``H ** -0.5``.

    Returns:
      [B, N, T, Hv] in the type of ``q``. Scores and softmax are float32.
    """
    parts = q if isinstance(q, tuple) else (q,)
    rows, heads, num_tokens, _ = parts[0].shape
    groups, dtype = v.shape[1], parts[0].dtype
    repeats, head_dim = heads // groups, sum(part.shape[-1] for part in parts)
    parts = tuple(x.reshape(rows, groups, repeats * num_tokens, x.shape[-1]) for x in parts)
    factor = jnp.float32(head_dim**-0.5 if scale is None else scale)
    # As one operand of two products, queries would have XLA's GPU compiler put the cache and the
    # block's keys into one buffer, to multiply both at once. (A single key makes no product.)
    apart = cached is not None and v.shape[2] > 1 and platform() == "gpu"

    def scores(parts: tuple[Array, ...], keys: Parts, mask: Array) -> Array:
        """[B, G, R * T, S]: ``mask`` is [B or 1, T or 1, S]."""
        dots = None
        for q, part in zip(parts, keys if isinstance(keys, tuple) else (keys,), strict=True):
            one = _product(q, part, apart)
            dots = one if dots is None else dots + one
        assert dots is not None
        dots = dots.reshape(rows, groups, repeats, num_tokens, -1)
        masked = jnp.where(mask[:, None, None], factor * dots, _MASKED)
        return masked.reshape(rows, groups, repeats * num_tokens, -1)

    def weighted(weights: Array, values: Array) -> Array:
        return jnp.einsum(
            "bgms,bgsh->bgmh",
            weights.astype(values.dtype),
            values,
            preferred_element_type=jnp.float32,
        )

    new = scores(jax.lax.optimization_barrier(parts) if apart else parts, k, visible)
    top = new.max(-1, keepdims=True)
    if cached is None:
        new = jnp.exp(new - top)
        out = weighted(new / new.sum(-1, keepdims=True), v)
    else:
        cached_k, cached_v, seen = cached
        old = scores(parts, cached_k, seen)
        top = jnp.maximum(top, old.max(-1, keepdims=True))
        if num_cores() > 1 and 4 * repeats * num_tokens > head_dim:
            # Many queries: forming the scores again, once their largest is known, moves fewer bytes
            # than keeping them in main memory. (The barrier makes it another product.)
            top, parts = jax.lax.optimization_barrier((top, parts))
            old = scores(parts, cached_k, seen)
        old, new = jnp.exp(old - top), jnp.exp(new - top)
        total = old.sum(-1, keepdims=True) + new.sum(-1, keepdims=True)
        # Stale slots have weight exactly 0. (Their values must be finite: masking the values too
        # would copy the cache.)
        out = (weighted(old, cached_v) + weighted(new, v)) / total
    return out.reshape(rows, heads, num_tokens, v.shape[-1]).astype(dtype)


def _product(q: Array, keys: Array, left: bool) -> Array:
    """[B, G, M, H], [B, G, S, H] -> [B, G, M, S] float32, with queries on the left or right."""
    if left:  # nothing is transposed behind it: fewer kernels on GPU
        return jnp.einsum("bgmh,bgsh->bgms", q, keys, preferred_element_type=jnp.float32)
    # Keys on the left: a transposed right-hand side would be a copy of the cache on CPU.
    dots = jnp.einsum("bgsh,bgmh->bgsm", keys, q, preferred_element_type=jnp.float32)
    return dots.swapaxes(2, 3)
