"""The cache: a memory a layer, per-row lengths, commit by count and path.

A model *reads* the cache and returns what its layers must remember of the tokens it was fed, as a
`Block`; nothing is written until the verdict is known. `Cache.commit` then hands each layer's entry
its part, behind the committed tokens of each row, and moves the row's length by what was kept:

    slots      0 1 2 3 4 5 6 7         row with length 3, block of 4, count 2
    before     a b c . . . . .
    after      a b c p d x x .         length 5; what lies behind is stale and never visible

A cache is only ever appended to within a cycle: nothing is taken back. Reading before writing keeps
the buffers free of copies inside the compiled loop (docs/design.md).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from specjax.core.cache.block import Block, Part, take
from specjax.core.cache.slots import commit_all
from specjax.core.ops import waiting_for
from specjax.core.platform import Platform
from specjax.core.sharding import constrain
from specjax.core.types import Array, pytree


class Entry(Protocol):
    """One layer's memory, and the only code that knows its arrays. A pytree.

    Besides these it has what its own kind of layer reads it by (`Full.attend`, say). It knows
    nothing of trees: `Cache.commit` has put the path in order.
    """

    def commit(self, part: Part, length: Array, count: Array) -> Entry:
        """Appends the first ``count`` [B] tokens of ``part`` behind ``length`` [B]."""
        ...

    def cut(self, length: Array, to: Array) -> tuple[Entry, Array]:
        """Keeps the first ``to`` [B] of ``length`` [B] tokens; also how many it then has.

        That is ``to``, or 0 for a row in which what came behind cannot be taken out again: it
        begins anew. ``to`` 0 always can.
        """
        ...

    def loses(self, length: int) -> bool:
        """Whether a text that grows to ``length`` tokens may leave it unable to be cut."""
        ...

    def grow(self, slots: int) -> Entry:
        """The same contents with room for a text of ``slots`` tokens."""
        ...

    def stale(self, length: Array) -> Entry:
        """With the worst that may lie in memory wherever nothing must be seen; for tests."""
        ...

    def filled(self, length: int) -> float:
        """The share of its arrays that a text of ``length`` tokens fills, from 0 to 1."""
        ...

    def placed(self, platform: Platform | None, replicated: bool) -> Entry:
        """The same, read and written as that platform does it.

        ``replicated``: of a model that every device of a mesh holds whole.
        """
        ...


@pytree
class Mark:
    """What of a cache at ``length`` [B] tokens is needed to come back to it later."""

    layers: tuple[Any, ...]  # of Entry; None: what can be cut needs no copy
    length: Array  # [B] int32


@pytree
class Cache:
    """``length`` [B] tokens of each row, remembered by every layer in its own way."""

    layers: tuple[Any, ...]  # of Entry
    length: Array  # [B] int32

    def commit(
        self,
        block: Block,
        count: Array,
        path: Array | None = None,
        *,
        after: Array | None = None,
    ) -> Cache:
        """Appends ``count`` [B] tokens of ``block``; count 0 leaves the row as it was.

        They are those at the places ``path`` [B, M + 1], in that order; None: the block's first.

        ``after`` [B], never negative, was computed from what was read of this cache (a verdict, a
        guess): the write then depends on the reads, and the compiler needs no copy to keep the two
        apart. None: ``count`` was.
        """
        if path is not None:
            block = jax.tree.map(lambda x: take(x, path), block)
        start = waiting_for(self.length, count if after is None else after)
        layers = commit_all(self.layers, block, start, count)
        return Cache(layers, constrain(self.length + count, "batch"))

    def cut(self, length: Array) -> Cache:
        """The first ``length`` [B] tokens, or all there are, for another text that begins so.

        A row of which not every entry can forget what came behind keeps none: its ``length`` tells.
        Between texts only: within a cycle nothing is taken back.
        """
        to = jnp.minimum(length, self.length)
        for entry in self.layers:
            to = jnp.minimum(to, entry.cut(self.length, to)[1])
        layers = tuple(entry.cut(self.length, to)[0] for entry in self.layers)
        return Cache(layers, constrain(to, "batch"))

    def loses(self, length: int) -> tuple[bool, ...]:
        """Which entries a text that grows to ``length`` tokens may leave unable to be cut."""
        return tuple(entry.loses(length) for entry in self.layers)

    def mark(self, which: tuple[bool, ...]) -> Mark:
        """To come back to this length although the entries ``which`` cannot be cut: copies."""
        kept = (jax.tree.map(jnp.copy, e) if w else None for e, w in zip(self.layers, which))
        return Mark(tuple(kept), jnp.copy(self.length))

    def back(self, mark: Mark, rows: Array, slots: int) -> Cache:
        """In ``rows`` [B] as it was at ``mark``, behind which tokens were only appended.

        ``slots`` are those of the texts now.
        """

        def old(entry: Any, kept: Any) -> Any:
            return entry if kept is None else where(rows, kept.grow(slots), entry)

        layers = tuple(map(old, self.layers, mark.layers))
        # What has no copy can be cut to any length.
        copied = any(kept is not None for kept in mark.layers)
        length = jnp.where(rows, mark.length, self.length) if copied else self.length
        return Cache(layers, constrain(length, "batch"))

    def grow(self, slots: int) -> Cache:
        """The same contents with room for texts of ``slots`` tokens."""
        return dataclasses.replace(self, layers=tuple(e.grow(slots) for e in self.layers))

    def stale(self) -> Cache:
        """With the worst that may lie in memory wherever nothing must be seen; for tests."""
        layers = tuple(e.stale(self.length) for e in self.layers)
        return dataclasses.replace(self, layers=layers)

    def assume(self, length: Array) -> Cache:
        """Takes whatever lies in memory for ``length`` [B] tokens: to measure times alone."""
        return dataclasses.replace(self, length=length)

    def first(self, depth: int) -> Cache:
        """The memory of the first ``depth`` layers: the same arrays."""
        return dataclasses.replace(self, layers=self.layers[:depth])

    def placed(self, platform: Platform | None, replicated: bool) -> Cache:
        """Places every entry, see `Entry.placed`."""
        layers = tuple(e.placed(platform, replicated) for e in self.layers)
        return dataclasses.replace(self, layers=layers)

    @property
    def num_bytes(self) -> int:
        """Bytes of all entries' arrays."""
        return sum(map(num_bytes, self.layers))

    def bytes_read(self, length: int, devices: int = 1) -> int:
        """Bytes that a pass behind ``length`` tokens cannot do without, on each of ``devices``."""
        held = ((e.filled(length), num_bytes(e) / _split(e, devices)) for e in self.layers)
        count: int = round(sum(share * size for share, size in held))
        return count

    def bytes_held(self, devices: int = 1) -> int:
        """Bytes of all entries' arrays, on each of ``devices`` that share the model."""
        return round(sum(num_bytes(e) / _split(e, devices) for e in self.layers))


def _split(entry: Any, devices: int) -> int:
    """Over how many of ``devices`` it lies; what has no heads (latents) lies whole on each."""
    return devices if getattr(entry, "axis", None) is not None else 1


def where(rows: Array, one: Any, other: Any) -> Any:
    """In ``rows`` [B] the arrays [B, ..] of ``one``, elsewhere those of ``other``."""
    return jax.tree.map(
        lambda a, b: jnp.where(rows.reshape(-1, *[1] * (a.ndim - 1)), a, b), one, other
    )


def num_bytes(entry: Any) -> int:
    """Bytes of an entry's arrays, on all devices."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(entry))


def caches_in(state: Any) -> list[Cache]:
    """The caches in a drafter's state, or in any other pytree."""
    is_cache = lambda x: isinstance(x, Cache)
    return [x for x in jax.tree.leaves(state, is_leaf=is_cache) if is_cache(x)]


def empty(layers: tuple[Any, ...], rows: int) -> Cache:
    """A cache of empty entries."""
    return Cache(layers, jnp.zeros((rows,), jnp.int32))
