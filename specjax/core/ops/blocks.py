"""Attention of many short blocks over one text, for training: its queries see a range of the text
before them and their own block.

    text        t t t t t t t t t t
    block 1     # # #                 x x x           A blocks of S slots; what a slot sees of the
    block 2     . # # # # #                 x x x     text is one range, begin..end - 1

The reference is `attend` under a dense mask, by which blocks are kept apart. `by_tiles` forms no
scores between blocks, the others of some blocks at a time, and forms them again for the gradient
from the logarithm of each query's sum (Dao et al. 2022, arXiv:2205.14135): what is kept grows with
the queries, not with the scores.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.dear import dear
from specjax.core.ops.one_softmax import Cached, one_softmax
from specjax.core.ops.op import Op
from specjax.core.platform import Platform
from specjax.core.sharding import pieces
from specjax.core.types import Array, pytree

_MASKED = -1e30
_WIDEST = 128  # of a head in the kernels: its tiles must lie in shared memory
_SCORES = 1 << 28  # bytes of float32 scores of a tile on a device, about


@pytree
class Seen:
    """What slots see."""

    begin: Array  # [B, A * S] int32: the first token of the text
    end: Array  # [B, A * S] int32: the one behind the last
    within: Array  # [S, S] bool: of their own block; at least themselves


def reference(q: Array, k: Array, v: Array, keys: Array, values: Array, seen: Seen) -> Array:
    """See `attend_blocks`."""
    place = jnp.arange(keys.shape[2])[None, None]
    outside = (seen.begin[..., None] <= place) & (place < seen.end[..., None])
    size, slots = seen.within.shape[0], q.shape[2]
    block = jnp.arange(slots) // size
    inside = jnp.tile(seen.within, (slots // size,) * 2) & (block[:, None] == block[None, :])
    return one_softmax(q, k, v, inside[None], Cached(keys, values, outside), None)


def by_tiles(q: Array, k: Array, v: Array, keys: Array, values: Array, seen: Seen) -> Array:
    """A tile is some blocks of all rows."""
    out: Array = _attend(q, k, v, keys, values, seen)
    return out


def in_kernels(
    q: Array,
    k: Array,
    v: Array,
    keys: Array,
    values: Array,
    seen: Seen,
    *,
    interpret: bool = False,
) -> Array:
    """In GPU kernels of our own; by tiles on a mesh, and what they do not take."""
    dtypes = {x.dtype for x in (q, k, v, keys, values)}
    fits = len(dtypes) == 1 and dtypes <= {jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)}
    fits = fits and q.shape[-1] <= _WIDEST and keys.shape[2] > 0
    if not fits or not jax.sharding.get_abstract_mesh().empty:
        return by_tiles(q, k, v, keys, values, seen)
    from specjax.core.ops import flash_blocks  # only here: it brings Pallas

    within = seen.within.astype(jnp.int8)
    given = flash_blocks.Given(q, k, v, keys, values, seen.begin, seen.end, within)
    return flash_blocks.attend(given, interpret)


# By platform; GPUs may be told to run what XLA makes.
ATTEND_BLOCKS = Op(
    reference, {"cpu": by_tiles, "gpu": in_kernels, "gpu:xla": by_tiles, "tpu": by_tiles}
)


def attend_blocks(
    q: Array,
    k: Array,
    v: Array,
    context: tuple[Array, Array],
    seen: Seen,
    *,
    platform: Platform | None = None,
) -> Array:
    """Softmax attention of A blocks of S slots, over ranges of a text and within each block.

    Args:
      q: [B, N, A * S, H], block behind block.
      k: [B, G, A * S, H], of the blocks; query head n reads key/value head ``n // (N / G)``.
      v: [B, G, A * S, H].
      context: keys and values [B, G, T, H] of the text.
      seen: what of both each slot sees.
      platform: that it is written for; None: JAX's default devices.

    Returns:
      [B, N, A * S, H] in the type of ``q``. Scores, softmax and sums are float32; scores are over
      the root of H.
    """
    out: Array = ATTEND_BLOCKS.on(platform)(q, k, v, *context, seen)
    return out


# --- by tiles -----------------------------------------------------------------------------------
#
# Arrays of a tile: queries [B, G, R, A, S, H], keys and values of blocks [B, G, A, S, H], ranges
# [B, A, S]; a text's keys and values stay [B, G, T, H].


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array, keys: Array, values: Array, seen: Seen) -> Array:
    out: Array = _forward(q, k, v, keys, values, seen)[0]
    return out


def _forward(q: Array, k: Array, v: Array, keys: Array, values: Array, seen: Seen) -> Any:
    cut = _Cut(q, keys, seen)

    def tile(_: None, given: Any) -> tuple[None, Any]:
        q, k, v, begin, end = given
        old, new = _scores(q, k, keys, begin, end, seen.within)
        top = jnp.maximum(old.max(-1, keepdims=True), new.max(-1, keepdims=True))
        old, new = jnp.exp(old - top), jnp.exp(new - top)
        total = old.sum(-1, keepdims=True) + new.sum(-1, keepdims=True)
        out = _sum("bgrast,bgth->bgrash", old, values) + _sum("bgrasu,bgauh->bgrash", new, v)
        return None, ((out / total).astype(q.dtype), (top + jnp.log(total))[..., 0])

    out, log_total = jax.lax.scan(tile, None, cut.tiles(q, k, v, seen))[1]
    out, log_total = dear(cut.whole_queries(out)), dear(log_total)
    return out, (q, k, v, keys, values, seen, out, log_total)


def _backward(kept: Any, by_out: Array) -> Any:
    q, k, v, keys, values, seen, out, log_total = kept
    cut = _Cut(q, keys, seen)
    mean = (by_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)  # [B, N, A * S]
    zero = jnp.zeros(keys.shape, jnp.float32)

    def tile(so_far: tuple[Array, Array], given: Any) -> Any:
        (q, k, v, begin, end), by_out, mean, log_total = given
        old, new = _scores(q, k, keys, begin, end, seen.within)
        old, new = (jnp.exp(x - log_total[..., None]) for x in (old, new))
        # By the scores, over the root of H: p * (by p - what p says of it on average).
        slope = lambda p, by_p: q.shape[-1] ** -0.5 * p * (by_p - mean[..., None])
        by_old = slope(old, _dots("bgrash,bgth->bgrast", by_out, values))
        by_new = slope(new, _dots("bgrash,bgauh->bgrasu", by_out, v))
        by_q = _sum("bgrast,bgth->bgrash", by_old, keys) + _sum("bgrasu,bgauh->bgrash", by_new, k)
        by_k, by_v = (
            _sum("bgrasu,bgrash->bgauh", weights, x) for weights, x in ((by_new, q), (new, by_out))
        )
        by_keys, by_values = (
            _sum("bgrast,bgrash->bgth", weights, x) for weights, x in ((by_old, q), (old, by_out))
        )
        found = (by_q.astype(q.dtype), by_k.astype(k.dtype), by_v.astype(v.dtype))
        return (so_far[0] + by_keys, so_far[1] + by_values), found

    given = (cut.tiles(q, k, v, seen), cut.queries(by_out), cut.queries(mean), log_total)
    (by_keys, by_values), (by_q, by_k, by_v) = jax.lax.scan(tile, (zero, zero), given)
    found = (cut.whole_queries(by_q), cut.whole(by_k), cut.whole(by_v))
    return *found, by_keys.astype(keys.dtype), by_values.astype(values.dtype), None


_attend.defvjp(_forward, _backward)


def _scores(
    q: Array, k: Array, keys: Array, begin: Array, end: Array, within: Array
) -> tuple[Array, Array]:
    """Over the text [B, G, R, A, S, T] and within blocks [B, G, R, A, S, S], masked, float32."""
    factor, place = jnp.float32(q.shape[-1] ** -0.5), jnp.arange(keys.shape[2])
    place, inside = place[(None,) * 3], within[(None,) * 4]
    seen = (begin[..., None] <= place) & (place < end[..., None])
    old = _dots("bgrash,bgth->bgrast", q, keys)
    new = _dots("bgrash,bgauh->bgrasu", q, k)
    return (
        jnp.where(seen[:, None, None], factor * old, _MASKED),
        jnp.where(inside, factor * new, _MASKED),
    )


def _dots(form: str, x: Array, y: Array) -> Array:
    return jnp.einsum(form, x, y, preferred_element_type=jnp.float32)


def _sum(form: str, weights: Array, x: Array) -> Array:
    """Weights in float32 are multiplied in the type of what they weigh."""
    return _dots(form, weights.astype(x.dtype), x)


class _Cut:
    """How arrays of all blocks are cut into tiles, [n, ...], and put together."""

    def __init__(self, q: Array, keys: Array, seen: Seen):
        self.rows, self.heads, slots, _ = q.shape
        self.groups, self.text, self.size = keys.shape[1], keys.shape[2], seen.within.shape[0]
        self.blocks = slots // self.size
        on_device = max(self.rows * self.heads // (pieces("batch") * pieces("heads")), 1)
        most = max(_SCORES // (4 * on_device * self.size * max(self.text, 1)), 1)
        fits = (n for n in range(1, self.blocks + 1) if self.blocks % n == 0)
        self.num = next(n for n in fits if self.blocks // n <= most)

    def tiles(self, q: Array, k: Array, v: Array, seen: Seen) -> tuple[Array, ...]:
        ranges = (self._cut(x, 1) for x in (seen.begin, seen.end))
        return self.queries(q), self._cut(k, 2), self._cut(v, 2), *ranges

    def queries(self, x: Array) -> Array:
        """[B, N, A * S, ..] -> [n, B, G, R, A / n, S, ..]."""
        return self._cut(x.reshape(self.rows, self.groups, -1, *x.shape[2:]), 3)

    def _cut(self, x: Array, axis: int) -> Array:
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        x = x.reshape(*before, self.num, self.blocks // self.num, self.size, *after)
        return jnp.moveaxis(x, axis, 0)

    def whole(self, x: Array, axis: int = 2) -> Array:
        """[n, B, G, A / n, S, H] -> [B, G, A * S, H]."""
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 3 :])

    def whole_queries(self, x: Array) -> Array:
        """[n, B, G, R, A / n, S, H] -> [B, N, A * S, H]."""
        x = self.whole(x, 3)
        return x.reshape(self.rows, self.heads, *x.shape[3:])
