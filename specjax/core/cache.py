"""The static key/value cache: fixed shapes, per-row lengths, commit by count.

A model *reads* the cache and returns the keys and values of the tokens it was fed as a `Block`;
nothing is written until the verdict is known. `commit` then writes the block behind the committed
tokens of each row and moves the row's length by the count that was kept:

    slots      0 1 2 3 4 5 6 7         row with length 3, block of 4, count 2
    before     a b c . . . . .
    after      a b c p d x x .         length 5; slots from 5 on are stale and never visible

Reading before writing keeps the buffers free of copies inside the compiled loop (docs/design.md).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from specjax.core.platform import platform
from specjax.core.sharding import axis_size, constrain
from specjax.core.types import Array, pytree, static

# On CPU a per-row dynamic_update_slice is several times cheaper than a scatter; unrolled over the
# rows it stays readable to the compiler up to this many.
_MAX_UNROLLED_ROWS = 8


@pytree
class Block:
    """Keys and values of the T tokens of one forward pass, not yet in the cache."""

    k: tuple[Array, ...]  # per layer [B, G, T, H]
    v: tuple[Array, ...]

    def widen(self, size: int) -> Block:
        """The same tokens with room for ``size`` in all."""
        pad = [(0, 0), (0, 0), (0, size - self.k[0].shape[2]), (0, 0)]
        return jax.tree.map(lambda x: jnp.pad(x, pad), self)

    def put(self, block: Block, place: Array) -> Block:
        """Writes the tokens of another block from ``place`` [] on."""

        def one(old: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(old, new, place, axis=2)

        return jax.tree.map(one, self, block)

    def drop_first(self, drop: Array) -> Block:
        """Moves the tokens of a row forward by one where ``drop`` [B]; the last place is stale."""

        def shift(x: Array) -> Array:
            return jnp.where(drop[:, None, None, None], jnp.roll(x, -1, axis=2), x)

        return Block(k=tuple(map(shift, self.k)), v=tuple(map(shift, self.v)))


@pytree
class Cache:
    """Slot s of row b is valid iff ``s < length[b]``, and holds the token at position s."""

    k: tuple[Array, ...]  # per layer [B, G, S, H]: separate buffers, so that none is restacked
    v: tuple[Array, ...]
    length: Array  # [B] int32
    # The logical axis of the heads on a mesh; None: every device has all of them.
    kv_axis: str | None = static(default="kv_heads")

    @property
    def num_slots(self) -> int:
        return self.k[0].shape[2]

    def commit(self, block: Block, count: Array) -> Cache:
        """Appends the first ``count`` [B] tokens of ``block``; count 0 leaves the row as it was.

        Pass a count that was computed from what was read of this cache (a verdict, a guess): the
        write then depends on the reads, and the compiler needs no copy to keep the two apart.
        """
        # count is never negative, but the compiler does not know: this is the dependence.
        start = self.length + jnp.minimum(count, 0)

        def append(buffer: Array, new: Array) -> Array:
            return constrain(write(buffer, new, start), "batch", self.kv_axis, None, None)

        return dataclasses.replace(
            self,
            k=tuple(map(append, self.k, block.k)),
            v=tuple(map(append, self.v, block.v)),
            length=constrain(self.length + count, "batch"),
        )

    def rollback(self, length: Array) -> Cache:
        """Forgets every slot from ``length`` [B] on. No data moves; the mask does the work."""
        return dataclasses.replace(self, length=length)

    def grow(self, num_slots: int) -> Cache:
        """The same contents in larger buffers."""
        pad = [(0, 0), (0, 0), (0, num_slots - self.num_slots), (0, 0)]
        bigger = lambda buffers: tuple(jnp.pad(b, pad) for b in buffers)
        return dataclasses.replace(self, k=bigger(self.k), v=bigger(self.v))


def empty_cache(
    *, rows: int, slots: int, layers: int, kv_heads: int, head_dim: int, dtype: jnp.dtype
) -> Cache:
    """A cache of zeros, sharded by rows and key/value heads where there is a mesh."""
    shape = (rows, kv_heads, slots, head_dim)

    def zeros() -> tuple[Array, ...]:
        # One buffer a leaf: the whole state is donated, and a buffer can be donated only once.
        return tuple(
            constrain(jnp.zeros(shape, dtype), "batch", "kv_heads", None, None)
            for _ in range(layers)
        )

    return Cache(k=zeros(), v=zeros(), length=jnp.zeros((rows,), jnp.int32))


def write(buffer: Array, new: Array, start: Array) -> Array:
    """Writes ``new`` [B, G, T, H] into ``buffer`` [B, G, S, H] at slot ``start`` [B] of each row.

    The caller guarantees ``start + T <= S``. (On platforms that scatter, what lies past the end is
    dropped; `dynamic_update_slice` would shift it onto valid slots.)
    """
    rows, _, num_new, _ = new.shape
    new = new.astype(buffer.dtype)
    if platform() == "cpu" and rows <= _MAX_UNROLLED_ROWS and axis_size("data") == 1:
        for b in range(rows):
            buffer = jax.lax.dynamic_update_slice(buffer, new[b : b + 1], (b, 0, start[b], 0))
        return buffer

    def one_row(buffer: Array, new: Array, start: Array) -> Array:
        slots = start + jnp.arange(num_new)
        return buffer.at[:, slots].set(new, mode="drop", unique_indices=True)

    return jax.vmap(one_row)(buffer, new, start)
