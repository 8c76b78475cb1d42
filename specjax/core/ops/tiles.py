"""Attention over a cache that reads of each row what the row has, tile by tile.

A tile is some slots of one row. One loop goes over the tiles of all rows, as many as their lengths
make, and folds each into the row's running softmax (Milakov and Gimelshein 2018, arXiv:1805.02867).
So a row pays for its own text: not for the longest beside it, and not for the buffer. What it reads
and in which order depends on nothing else either.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.ops.laid import Laid
from specjax.core.ops.one_softmax import Cached, Form, Known, Parts, Queries, weighted
from specjax.core.sharding import on_device
from specjax.core.trips import expected_tiles
from specjax.core.types import Array


def by_tiles(
    q: Queries,
    k: Parts,
    v: Known,
    visible: Array,
    cached: Cached,
    scale: float | None,
    sinks: Array | None = None,
    *,
    size: int,
) -> Array:
    """`attend` over tiles of ``size`` slots up to ``cached.reach``."""
    form, parts = Form.of(q, v, scale)
    new = form.scores(parts, k, visible)
    top = new.max(-1, keepdims=True)
    if sinks is not None:
        top = jnp.maximum(top, form.sink(sinks))
    new = jnp.exp(new - top)
    total = new.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(form.sink(sinks) - top)
    tiles = Tiles(cached, size)
    end = jnp.cumsum(tiles.of_rows)  # of each row's tiles among all

    def fold(i: Array, so_far: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        row = (end <= i).sum()
        tile = tiles.at(row, i - (end[row] - tiles.of_rows[row]))
        mine = tuple(_row(x, row) for x in parts)
        top, total, out = (_row(x, row) for x in so_far)
        keys, values = tile.written()
        old = form.scores(mine, keys, tile.seen)
        higher = jnp.maximum(top, old.max(-1, keepdims=True))
        old, shrunk = jnp.exp(old - higher), jnp.exp(top - higher)
        total = total * shrunk + old.sum(-1, keepdims=True)
        out = out * shrunk + weighted(old, values)
        put = lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, row, 0)
        return tuple(map(put, so_far, (higher, total, out)))  # type: ignore[return-value]

    with expected_tiles(size, end.shape[0], tiles.slots):
        so_far = jax.lax.fori_loop(0, end[-1], fold, (top, total, weighted(new, v)))
    _, total, out = so_far
    return form.ungrouped(out / total).astype(parts[0].dtype)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """A cache cut into tiles of ``size`` slots; the last of a buffer may overlap the one before."""

    cached: Cached
    size: int

    @property
    def slots(self) -> int:
        return self.cached.seen.shape[-1]

    @property
    def of_rows(self) -> Array:
        """[B] int32: how many tiles each row's text reaches into."""
        assert self.cached.reach is not None
        return -(-self.cached.reach // self.size)

    def at(self, row: Array, tile: Array) -> Cached:
        """Tile number ``tile`` of ``row``, a cache of one row."""
        start = tile * self.size
        at = jnp.minimum(start, self.slots - self.size)

        def cut(x: Array) -> Array:
            sizes = (1, x.shape[1], self.size, x.shape[3])
            return jax.lax.dynamic_slice(x, (row, 0, at, 0), sizes)

        seen = self.cached.seen
        mine = jnp.where(seen.shape[0] > 1, row, 0)
        seen = jax.lax.dynamic_slice(seen, (mine, 0, at), (1, seen.shape[1], self.size))
        seen = seen & (at + jnp.arange(self.size) >= start)[None, None]
        keys, values = jax.tree.map(cut, (self.cached.keys, self.cached.values))
        return Cached(keys, values, seen, write=self.cached.write)


def _row(x: Array, row: Array) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, row, 1, 0)


@dataclasses.dataclass(frozen=True)
class Follow:
    """A variant of `attend` whose cost follows the text where the cache is large.

    Elsewhere, and where nothing is known of how far texts reach, it is ``whole``.
    """

    whole: Callable[..., Array]
    tile_bytes: int  # of keys and values in a tile, about
    sizes: tuple[int, int]  # of a tile, at least and at most, in slots
    # Caches of values whose width this does not divide are read whole.
    width: int = 1
    # Where all scores of the cache would be more than the first number of bytes on a device, a tile
    # is of so few slots that its own are at most the second, whatever the size of the cache. None:
    # scores do not matter.
    scores: tuple[int, int] | None = None
    # Of so many queries a key/value head: how many slots that are read whole one costs that is read
    # in a tile. Where that is more than one, what is cheaper is done, for all rows of a pass alike.
    cost: Callable[[int], float] = lambda queries: 1.0

    def __call__(
        self,
        q: Queries,
        k: Parts,
        v: Known,
        visible: Array,
        cached: Cached | None,
        scale: float | None,
        sinks: Array | None = None,
    ) -> Array:
        laid = None if cached is None else Laid.of(q, v, visible, cached, sinks)
        if cached is None or laid is None:
            return self.whole(q, k, v, visible, cached, scale, sinks)
        size, slots = self.tile(cached, laid.groups), cached.seen.shape[-1]
        most = self._most_for_scores(q, v, laid.groups, slots)
        size, fits = (size, 4 * size) if most is None else (min(size, most), 2 * most)
        if slots < fits or jax.tree.leaves(v)[0].shape[-1] % self.width:
            return self.whole(q, k, v, visible, cached, scale, sinks)

        cheaper = functools.partial(self._cheaper, size=size)
        return laid.run(cheaper, q, k, v, visible, cached, scale, sinks)

    def tile(self, cached: Cached, groups: int) -> int:
        """How many slots a tile has, of ``groups`` heads on a device: a power of two."""
        arrays = jax.tree.leaves((cached.keys, cached.values))
        slot = sum(groups * x.shape[3] * x.dtype.itemsize for x in arrays)
        least, most = self.sizes
        size: int = 1 << (max(self.tile_bytes // slot, 1).bit_length() - 1)
        return min(max(size, least), most)

    def _most_for_scores(self, q: Queries, v: Known, groups: int, slots: int) -> int | None:
        """The most slots of a tile whose scores stay on the chip; None: all of them do."""
        if self.scores is None:
            return None
        form, (one, *_) = Form.of(q, v, None)
        slot = 4 * groups * form.repeats * form.num_tokens  # bytes of a row's scores
        rows, (most, of_tile) = on_device(one.shape[0], "batch"), self.scores
        if rows * slot * slots <= most:
            return None
        return max(1 << (max(of_tile // slot, 1).bit_length() - 1), self.sizes[0])

    def _cheaper(self, *given: Any, size: int) -> Array:
        tiled, (q, _, v, _, cached, *_) = functools.partial(by_tiles, size=size), given
        form, _ = Form.of(q, v, None)
        cost = self.cost(form.repeats * form.num_tokens)
        if cost <= 1:
            return tiled(*given)
        every = cached.seen.shape[-1] * cached.reach.shape[0]
        few = Tiles(cached, size).of_rows.sum() < round(every / (cost * size))
        found: Array = jax.lax.cond(few, lambda: tiled(*given), lambda: self.whole(*given))
        return found
