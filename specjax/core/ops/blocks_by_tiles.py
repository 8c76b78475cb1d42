"""`attend_blocks` as XLA compiles it: a tile is some blocks of all rows, and some of the text.

Arrays of a tile: queries [B, G, R, A, S, H], keys and values of blocks [B, G, A, S, H], ranges
[B, A, S], keys and values of the text [B, G, K, H]; scores over the text [B, G, R, A, S, K].
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.dear import dear
from specjax.core.sharding import pieces
from specjax.core.types import Array

_MASKED = -1e30
_SCORES = 1 << 28  # bytes of float32 scores of a tile on a device, at most where that is possible

_Sums = tuple[Array, Array, Array]  # largest score, weights [.., 1], weighted values [.., H]


@dataclasses.dataclass(frozen=True)
class ByTiles:
    """A variant of `attend_blocks`."""

    follows: bool  # whether tiles of the text that no slot of a tile sees are passed over
    side: int  # slots, and tokens of the text, of a tile, at most

    def __call__(
        self,
        q: Array,
        own: Any,
        context: Any,
        seen: Any,
        scale: float | None,
        sinks: Array | None,
    ) -> Array:
        factor = scale or q.shape[-1] ** -0.5
        out, log_total = _attend(self, factor, q, own, context, seen)
        return with_sinks(out, log_total, sinks)


def with_sinks(out: Array, log_total: Array, sinks: Array | None) -> Array:
    """What is attended to [B, N, L, H], where ``sinks`` [N] take their share of the softmax.

    ``log_total`` [B, N, L] are the logarithms of the sums of weights without them.
    """
    if sinks is None:
        return out
    share = jax.nn.sigmoid(log_total - sinks.astype(jnp.float32)[None, :, None])
    return (share[..., None] * out.astype(jnp.float32)).astype(out.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(how: ByTiles, factor: float, q: Array, own: Any, context: Any, seen: Any) -> Any:
    return _forward(how, factor, q, own, context, seen)[0]


def _forward(how: ByTiles, factor: float, q: Array, own: Any, context: Any, seen: Any) -> Any:
    cut = _Cut.of(q, context[0], seen, how.side)
    text = cut.text(context)

    def tile(_: None, given: Any) -> tuple[None, Any]:
        q, own, begin, end = given
        shape = (*q.shape[:-1], 1)
        sums = jnp.zeros((*q.shape[:-1], text[1].shape[-1]), jnp.float32)
        so_far: _Sums = (jnp.full(shape, _MASKED), jnp.zeros(shape), sums)
        for k, v in own:
            inside = jnp.broadcast_to(seen.within, (*shape[:-1], cut.size))
            so_far = _fold(so_far, factor * _own_dots(q, k), inside, _own_sum, v)

        def one(i: Array, so_far: _Sums) -> _Sums:
            key, value = cut.part(text, i)
            scores = factor * _dots("bgrash,bgkh->bgrask", q, key)
            return _fold(so_far, scores, cut.sees(begin, end, i), _text_sum, value)

        top, total, sums = jax.lax.fori_loop(*cut.bounds(how.follows, begin, end), one, so_far)
        total = jnp.where(total > 0, total, 1.0)
        return None, ((sums / total).astype(q.dtype), (top + jnp.log(total))[..., 0])

    out, log_total = jax.lax.scan(tile, None, cut.tiles(q, own, seen))[1]
    found = dear(cut.whole_queries(out)), dear(cut.whole_queries(log_total))
    return found, (q, own, context, seen, *found)


def _fold(so_far: _Sums, scores: Array, seen: Array, weigh: Any, values: Array) -> _Sums:
    """Some keys more."""
    top, total, sums = so_far
    scores = jnp.where(seen, scores, _MASKED)
    higher = jnp.maximum(top, scores.max(-1, keepdims=True))
    shrunk, weights = jnp.exp(top - higher), jnp.where(seen, jnp.exp(scores - higher), 0.0)
    total = total * shrunk + weights.sum(-1, keepdims=True)
    return higher, total, sums * shrunk + weigh(weights, values)


def _backward(how: ByTiles, factor: float, kept: Any, by: tuple[Array, Array]) -> Any:
    (by_out, by_log), (q, own, context, seen, out, log_total) = by, kept
    cut = _Cut.of(q, context[0], seen, how.side)
    text = cut.text(context)
    # By a score: its weight times (by the weight - what weights say of it on average).
    mean = (by_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1) - by_log  # [B, N, A * S]

    def tile(by_text: Any, given: Any) -> Any:
        (q, own, begin, end), by_out, mean, log_total = given

        def slopes(scores: Array, seen: Array, by_weights: Array) -> tuple[Array, Array]:
            """Weights, and the gradient by the products that scores are made of."""
            scores = jnp.where(seen, factor * scores, _MASKED)
            weights = jnp.where(seen, jnp.exp(scores - log_total[..., None]), 0.0)
            return weights, factor * weights * (by_weights - mean[..., None])

        by_q, by_own = jnp.zeros(q.shape, jnp.float32), []
        for k, v in own:
            weights, slope = slopes(_own_dots(q, k), seen.within, _own_dots(by_out, v))
            by_q = by_q + _own_sum(slope, k)
            found = _own_turned(slope, q), _own_turned(weights, by_out)
            by_own.append((found[0].astype(k.dtype), found[1].astype(v.dtype)))

        def one(i: Array, so_far: Any) -> Any:
            by_q, *by_text = so_far
            key, value = cut.part(text, i)
            scores = _dots("bgrash,bgkh->bgrask", q, key)
            by_weights = _dots("bgrash,bgkh->bgrask", by_out, value)
            weights, slope = slopes(scores, cut.sees(begin, end, i), by_weights)
            turned = "bgrask,bgrash->bgkh"
            by_text = cut.added(by_text, (_sum(turned, slope, q), _sum(turned, weights, by_out)), i)
            return by_q + _text_sum(slope, key), *by_text

        bounds = cut.bounds(how.follows, begin, end)
        by_q, *by_text = jax.lax.fori_loop(*bounds, one, (by_q, *by_text))
        return tuple(by_text), (by_q.astype(q.dtype), tuple(by_own))

    given = (cut.tiles(q, own, seen), *map(cut.queries, (by_out, mean, log_total)))
    zero: Any = tuple(jnp.zeros(x.shape, jnp.float32) for x in text)
    by_text, (by_q, by_own) = jax.lax.scan(tile, zero, given)
    length = context[0].shape[2]
    by_text = tuple(x[:, :, :length].astype(y.dtype) for x, y in zip(by_text, context))
    return cut.whole_queries(by_q), jax.tree.map(cut.whole, by_own), by_text, None


_attend.defvjp(_forward, _backward)


def _dots(form: str, x: Array, y: Array) -> Array:
    return jnp.einsum(form, x, y, preferred_element_type=jnp.float32)


def _sum(form: str, weights: Array, x: Array) -> Array:
    """Weights in float32 are multiplied in the type of what they weigh."""
    return _dots(form, weights.astype(x.dtype), x)


def _text_sum(weights: Array, x: Array) -> Array:
    return _sum("bgrask,bgkh->bgrash", weights, x)


# Within blocks [B, G, R, A, S, S]; a block of one slot has no product to make of it.


def _own_dots(q: Array, k: Array) -> Array:
    if q.shape[-2] > 1:
        return _dots("bgrash,bgauh->bgrasu", q, k)
    return (q.astype(jnp.float32) * k[:, :, None].astype(jnp.float32)).sum(-1, keepdims=True)


def _own_sum(weights: Array, x: Array) -> Array:
    if weights.shape[-1] > 1:
        return _sum("bgrasu,bgauh->bgrash", weights, x)
    return weights.astype(x.dtype).astype(jnp.float32) * x[:, :, None].astype(jnp.float32)


def _own_turned(weights: Array, x: Array) -> Array:
    if weights.shape[-1] > 1:
        return _sum("bgrasu,bgrash->bgauh", weights, x)
    return (weights.astype(x.dtype).astype(jnp.float32) * x.astype(jnp.float32)).sum(2)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """How arrays are cut into tiles and put together."""

    rows: int
    heads: int
    groups: int
    size: int  # slots of a block
    blocks: int
    text_size: int
    num: int  # tiles of blocks
    keys: int  # tokens of a tile

    @classmethod
    def of(cls, q: Array, keys: Array, seen: Any, side: int) -> _Cut:
        rows, heads, slots, _ = q.shape
        size, text = seen.within.shape[0], max(keys.shape[2], 1)
        of_keys = -(-text // -(-text // side))
        on_device = max(rows * heads // (pieces("batch") * pieces("heads")), 1)
        most = min(side, _SCORES // (4 * on_device * of_keys)) // size
        num = -(-(slots // size) // max(most, 1))
        return cls(rows, heads, keys.shape[1], size, slots // size, text, num, of_keys)

    @property
    def each(self) -> int:
        """Blocks of a tile; the last may have some that are none."""
        return -(-self.blocks // self.num)

    @property
    def parts(self) -> int:
        """Of the text."""
        return -(-self.text_size // self.keys)

    def tiles(self, q: Array, own: Any, seen: Any) -> tuple[Any, ...]:
        """[n, ...], and of what is no block an empty range."""
        begin, end = self._cut(seen.begin, 1, self.text_size), self._cut(seen.end, 1)
        return self.queries(q), jax.tree.map(lambda x: self._cut(x, 2), own), begin, end

    def queries(self, x: Array) -> Array:
        """[B, N, A * S, ..] -> [n, B, G, R, A / n, S, ..]."""
        return self._cut(x.reshape(self.rows, self.groups, -1, *x.shape[2:]), 3)

    def _cut(self, x: Array, axis: int, filled: int = 0) -> Array:
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        pad = [(0, 0)] * x.ndim
        pad[axis] = (0, (self.num * self.each - self.blocks) * self.size)
        x = jnp.pad(x, pad, constant_values=filled) if pad[axis][1] else x
        return jnp.moveaxis(x.reshape(*before, self.num, self.each, self.size, *after), axis, 0)

    def whole(self, x: Array, axis: int = 2) -> Array:
        """[n, B, G, A / n, S, H] -> [B, G, A * S, H]."""
        x = jnp.moveaxis(x, 0, axis)
        x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 3 :])
        return jax.lax.slice_in_dim(x, 0, self.blocks * self.size, axis=axis)

    def whole_queries(self, x: Array) -> Array:
        """[n, B, G, R, A / n, S, H] -> [B, N, A * S, H]."""
        x = self.whole(x, 3)
        return x.reshape(self.rows, self.heads, *x.shape[3:])

    def text(self, context: Any) -> tuple[Array, Array]:
        """Keys and values, padded to whole tiles."""
        keys, values = context
        pad = ((0, 0), (0, 0), (0, self.parts * self.keys - keys.shape[2]), (0, 0))
        return jnp.pad(keys, pad), jnp.pad(values, pad)

    def part(self, text: Any, i: Array) -> tuple[Array, ...]:
        """Tile ``i`` of the text."""
        one = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=self.keys, axis=2)
        return tuple(one(x, i * self.keys) for x in text)

    def added(self, text: Any, more: Any, i: Array) -> tuple[Array, ...]:
        """``text`` with ``more`` added to its tile ``i``."""
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=2)
        sums = zip(text, self.part(text, i), more, strict=True)
        return tuple(put(x, old + new, i * self.keys) for x, old, new in sums)

    def sees(self, begin: Array, end: Array, i: Array) -> Array:
        """[B, 1, 1, A, S, K] bool: what ranges see of tile ``i`` of the text."""
        place = (i * self.keys + jnp.arange(self.keys))[(None,) * 3]
        return ((begin[..., None] <= place) & (place < end[..., None]))[:, None, None]

    def bounds(self, follows: bool, begin: Array, end: Array) -> tuple[Any, Any]:
        """The first tile of the text that is looked at, and the one behind the last."""
        if not follows or self.parts == 1:
            return 0, self.parts
        return begin.min() // self.keys, (end.max() + self.keys - 1) // self.keys
