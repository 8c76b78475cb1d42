"""Attention over a cache and the block of tokens being fed, under one softmax.

The cache is read, never written, here: scores over the cached slots and scores over the block are
two products that share one softmax. `ops.attend` says what goes in and what comes out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specjax.core.quantised import Quantised
from specjax.core.types import Array

_MASKED = -1e30  # finite, so that a row that sees nothing has no NaN

Known = Array | Quantised  # [B, G, S, H], also with a factor a token
Queries = Array | tuple[Array, ...]
Parts = Known | tuple[Array, ...]  # queries or keys whose scores add up
Dots = Callable[[Array, Array], Array]  # [B, G, M, H], [B, G, S, H] -> [B, G, M, S] float32


class Cached(NamedTuple):
    """What a layer remembers, and what of it queries see."""

    keys: Parts  # [B, G, S, H]
    values: Known  # [B, G, S, Hv]
    seen: Array  # [B, 1 or T, S] bool
    reach: Array | None = None  # [B] int32: behind so many slots nothing is seen; None: not known
    # The logical axes of the heads of queries, and of keys and values, on a mesh.
    axes: tuple[str | None, str | None] = (None, None)
    # Makes the keys and values from `keys`, `values` and `seen`, where they are kept otherwise.
    write: Callable[[Any, Any, Array], tuple[Array, Array]] | None = None

    def written(self) -> tuple[Parts, Known]:
        """Keys and values as they are looked at."""
        if self.write is None:
            return self.keys, self.values
        return self.write(self.keys, self.values, self.seen)


def keys_left(q: Array, keys: Array) -> Array:
    """As a transposed right-hand side the cache would be copied on CPU."""
    dots = jnp.einsum("bgsh,bgmh->bgsm", keys, q, preferred_element_type=jnp.float32)
    return dots.swapaxes(2, 3)


def queries_left(q: Array, keys: Array) -> Array:
    """Nothing is transposed behind it: fewer kernels on GPU."""
    return jnp.einsum("bgmh,bgsh->bgms", q, keys, preferred_element_type=jnp.float32)


@dataclasses.dataclass(frozen=True)
class Form:
    """Queries grouped by the key/value head that they read: [B, G, M, H], M = R * T."""

    groups: int
    repeats: int  # query heads of a key/value head
    num_tokens: int
    factor: float  # of the scores
    dots: Dots

    @classmethod
    def of(
        cls, q: Queries, values: Known, scale: float | None, dots: Dots = keys_left
    ) -> tuple[Form, tuple[Array, ...]]:
        """Also the queries' parts in that form."""
        parts = q if isinstance(q, tuple) else (q,)
        rows, heads, num_tokens, _ = parts[0].shape
        groups, head_dim = values.shape[1], sum(part.shape[-1] for part in parts)
        form = cls(groups, heads // groups, num_tokens, scale or head_dim**-0.5, dots)
        shape = (rows, groups, form.repeats * num_tokens)
        return form, tuple(x.reshape(*shape, x.shape[-1]) for x in parts)

    def scores(self, parts: tuple[Array, ...], keys: Parts, mask: Array) -> Array:
        """[B, G, M, S] float32; ``mask`` is [B or 1, T or 1, S]."""
        total = None
        for q, part in zip(parts, keys if isinstance(keys, tuple) else (keys,), strict=True):
            one = _dots(self.dots, q, part)
            total = one if total is None else total + one
        assert total is not None
        rows = total.shape[0]
        total = total.reshape(rows, self.groups, self.repeats, self.num_tokens, -1)
        masked = jnp.where(mask[:, None, None], jnp.float32(self.factor) * total, _MASKED)
        return masked.reshape(rows, self.groups, self.repeats * self.num_tokens, -1)

    def sink(self, sinks: Array) -> Array:
        """One more score of each query head, which carries no value: [1, G, M, 1]."""
        heads = sinks.astype(jnp.float32).reshape(1, self.groups, -1)
        return jnp.repeat(heads, self.num_tokens, axis=2)[..., None]

    def ungrouped(self, out: Array) -> Array:
        """[B, G, M, Hv] -> [B, N, T, Hv]."""
        return out.reshape(out.shape[0], -1, self.num_tokens, out.shape[-1])


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
    form, parts = Form.of(q, v, scale, dots)
    dtype = parts[0].dtype
    new = form.scores(jax.lax.optimization_barrier(parts) if apart else parts, k, visible)
    top = new.max(-1, keepdims=True)
    sink = None if sinks is None else form.sink(sinks)
    top = top if sink is None else jnp.maximum(top, sink)
    if cached is None:
        new = jnp.exp(new - top)
        total = new.sum(-1, keepdims=True)
        total = total if sink is None else total + jnp.exp(sink - top)
        out = weighted(new / total, v)
    else:
        cached_k, cached_v = cached.written()
        old = form.scores(parts, cached_k, cached.seen)
        top = jnp.maximum(top, old.max(-1, keepdims=True))
        if again:  # the barrier makes it another product
            top, parts = jax.lax.optimization_barrier((top, parts))
            old = form.scores(parts, cached_k, cached.seen)
        old, new = jnp.exp(old - top), jnp.exp(new - top)
        total = old.sum(-1, keepdims=True) + new.sum(-1, keepdims=True)
        total = total if sink is None else total + jnp.exp(sink - top)
        # Stale slots have weight exactly 0. (Their values must be finite: masking the values too
        # would copy the cache.)
        out = (weighted(old, cached_v) + weighted(new, v)) / total
    return form.ungrouped(out).astype(dtype)


def _dots(dots: Dots, q: Array, keys: Known) -> Array:
    """`Dots`; a key's factor comes behind its product."""
    if isinstance(keys, Quantised):
        return dots(q, keys.values.astype(q.dtype)) * keys.factors.swapaxes(2, 3)
    return dots(q, keys)


def weighted(weights: Array, values: Known) -> Array:
    """[B, G, M, S], [B, G, S, Hv] -> [B, G, M, Hv] float32."""
    if isinstance(values, Quantised):  # a value's factor is a part of its weight
        weights, values = (
            weights * values.factors.swapaxes(2, 3),
            values.values.astype(values.dtype),
        )
    return jnp.einsum(
        "bgms,bgsh->bgmh", weights.astype(values.dtype), values, preferred_element_type=jnp.float32
    )
