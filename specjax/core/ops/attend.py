"""Grouped-query attention over a cache and the block of tokens being fed, under one softmax.

The cache is read, never written, here: scores over the cached slots and scores over the block are
two products that share one softmax.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from specjax.core.ops.op import Op
from specjax.core.platform import Platform
from specjax.core.quantised import Quantised
from specjax.core.types import Array

_MASKED = -1e30  # finite, so that a row that sees nothing has no NaN

Known = Array | Quantised  # [B, G, S, H], also with a factor a token
Queries = Array | tuple[Array, ...]
Parts = Known | tuple[Array, ...]  # queries or keys whose scores add up
Cached = tuple[Parts, Known, Array]  # keys, values, and which slots each query sees
Dots = Callable[[Array, Array], Array]  # [B, G, M, H], [B, G, S, H] -> [B, G, M, S] float32


def keys_left(q: Array, keys: Array) -> Array:
    """As a transposed right-hand side the cache would be copied on CPU."""
    dots = jnp.einsum("bgsh,bgmh->bgsm", keys, q, preferred_element_type=jnp.float32)
    return dots.swapaxes(2, 3)


def queries_left(q: Array, keys: Array) -> Array:
    """Nothing is transposed behind it: fewer kernels on GPU."""
    return jnp.einsum("bgmh,bgsh->bgms", q, keys, preferred_element_type=jnp.float32)


def one_softmax(
    q: Queries,
    k: Parts,
    v: Known,
    visible: Array,
    cached: Cached | None,
    scale: float | None,
    sinks: Array | None = None,
    dots: Dots = keys_left,
    *,
    apart: bool = False,
    again: bool = False,
) -> Array:
    """`attend`, with ``dots`` for products of queries and keys.

    ``apart``: the queries of the block's scores are another operand than those of the cache's.
    ``again``: the scores of the cache are formed twice, before and behind the largest of them.
    """
    parts = q if isinstance(q, tuple) else (q,)
    rows, heads, num_tokens, _ = parts[0].shape
    groups, dtype = v.shape[1], parts[0].dtype
    repeats, head_dim = heads // groups, sum(part.shape[-1] for part in parts)
    parts = tuple(x.reshape(rows, groups, repeats * num_tokens, x.shape[-1]) for x in parts)
    factor = jnp.float32(head_dim**-0.5 if scale is None else scale)

    def scores(parts: tuple[Array, ...], keys: Parts, mask: Array) -> Array:
        """[B, G, R * T, S]: ``mask`` is [B or 1, T or 1, S]."""
        total = None
        for q, part in zip(parts, keys if isinstance(keys, tuple) else (keys,), strict=True):
            one = _dots(dots, q, part)
            total = one if total is None else total + one
        assert total is not None
        total = total.reshape(rows, groups, repeats, num_tokens, -1)
        masked = jnp.where(mask[:, None, None], factor * total, _MASKED)
        return masked.reshape(rows, groups, repeats * num_tokens, -1)

    new = scores(jax.lax.optimization_barrier(parts) if apart else parts, k, visible)
    top = new.max(-1, keepdims=True)
    sink = None if sinks is None else _sink(sinks, groups, num_tokens)
    top = top if sink is None else jnp.maximum(top, sink)
    if cached is None:
        new = jnp.exp(new - top)
        total = new.sum(-1, keepdims=True)
        total = total if sink is None else total + jnp.exp(sink - top)
        out = _weighted(new / total, v)
    else:
        cached_k, cached_v, seen = cached
        old = scores(parts, cached_k, seen)
        top = jnp.maximum(top, old.max(-1, keepdims=True))
        if again:  # the barrier makes it another product
            top, parts = jax.lax.optimization_barrier((top, parts))
            old = scores(parts, cached_k, seen)
        old, new = jnp.exp(old - top), jnp.exp(new - top)
        total = old.sum(-1, keepdims=True) + new.sum(-1, keepdims=True)
        total = total if sink is None else total + jnp.exp(sink - top)
        # Stale slots have weight exactly 0. (Their values must be finite: masking the values too
        # would copy the cache.)
        out = (_weighted(old, cached_v) + _weighted(new, v)) / total
    return out.reshape(rows, heads, num_tokens, v.shape[-1]).astype(dtype)


def _sink(sinks: Array, groups: int, num_tokens: int) -> Array:
    """One more score of each query head, which carries no value: [1, G, R * T, 1]."""
    heads = sinks.astype(jnp.float32).reshape(1, groups, -1)
    return jnp.repeat(heads, num_tokens, axis=2)[..., None]


def _dots(dots: Dots, q: Array, keys: Known) -> Array:
    """`Dots`; a key's factor comes behind its product."""
    if isinstance(keys, Quantised):
        return dots(q, keys.values.astype(q.dtype)) * keys.factors.swapaxes(2, 3)
    return dots(q, keys)


def _weighted(weights: Array, values: Known) -> Array:
    """[B, G, M, S], [B, G, S, Hv] -> [B, G, M, Hv] float32."""
    if isinstance(values, Quantised):  # a value's factor is a part of its weight
        weights, values = (
            weights * values.factors.swapaxes(2, 3),
            values.values.astype(values.dtype),
        )
    return jnp.einsum(
        "bgms,bgsh->bgmh", weights.astype(values.dtype), values, preferred_element_type=jnp.float32
    )


def reference(
    q: Queries,
    k: Parts,
    v: Known,
    visible: Array,
    cached: Cached | None,
    scale: float | None,
    sinks: Array | None = None,
) -> Array:
    """See `attend`."""
    return one_softmax(q, k, v, visible, cached, scale, sinks)


def on_gpu(
    q: Queries,
    k: Parts,
    v: Known,
    visible: Array,
    cached: Cached | None,
    scale: float | None,
    sinks: Array | None = None,
) -> Array:
    """Two operands of queries.

    As one operand of two products, XLA's GPU compiler would put the cache and the block's keys into
    one buffer, to multiply both at once. (A single key makes no product.)
    """
    if cached is None or v.shape[2] == 1:
        return reference(q, k, v, visible, cached, scale, sinks)
    return one_softmax(q, k, v, visible, cached, scale, sinks, queries_left, apart=True)


def on_two_cores(
    q: Queries,
    k: Parts,
    v: Known,
    visible: Array,
    cached: Cached | None,
    scale: float | None,
    sinks: Array | None = None,
) -> Array:
    """Many queries' scores are formed again once their largest is known.

    That moves fewer bytes than keeping them in main memory, which is where the cores meet.
    """
    parts = q if isinstance(q, tuple) else (q,)
    queries = parts[0].shape[1] // v.shape[1] * parts[0].shape[2]  # of a key/value head
    again = 4 * queries > sum(part.shape[-1] for part in parts)
    return one_softmax(q, k, v, visible, cached, scale, sinks, again=again)


ATTEND = Op(reference, {"gpu": on_gpu, "tpu:2": on_two_cores})


def attend(
    q: Queries,
    k: Parts,
    v: Known,
    visible: Array,
    cached: Cached | None,
    *,
    scale: float | None = None,
    sinks: Array | None = None,
    platform: Platform | None = None,
) -> Array:
    """Softmax attention of the block's queries over the cache and the block.

    Queries and keys may come in parts whose scores add up, as those of latent attention do.

    Args:
      q: [B, N, T, H], of the block's last T tokens; or a tuple of parts of different widths.
      k: [B, G, U, H], of the whole block; query head n reads key/value head ``n // (N / G)``.
      v: [B, G, U, Hv].
      visible: [B or 1, T, U] bool, which tokens of the block each query sees.
      cached: keys [B, G, S, H], values [B, G, S, Hv] and which slots each query sees,
        [B, 1 or T, S] bool; None where the block is the whole sequence. Keys and values, here and
        of the block, may be in 8 bits.
      scale: of the scores; None: ``H ** -0.5``.
      sinks: [N], a score of each query head that takes its share of the softmax and carries no
        value (Agarwal et al. 2025, arXiv:2508.10925); None: there is none. It is counted once,
        whatever parts the keys come in.
      platform: that it is written for; None: JAX's default devices.

    Returns:
      [B, N, T, Hv] in the type of ``q``. Scores and softmax are float32.
    """
    out: Array = ATTEND.on(platform)(q, k, v, visible, cached, scale, sinks)
    return out
