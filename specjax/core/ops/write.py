"""Where a block of new tokens is written into a cache, and that it waits for what was read."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from specjax.core.ops.op import Op
from specjax.core.platform import Platform
from specjax.core.sharding import pieces
from specjax.core.types import Array

# On CPU a per-row dynamic_update_slice is several times cheaper than a scatter; unrolled over the
# rows it stays readable to the compiler up to this many.
_MAX_UNROLLED_ROWS = 8


def scatter(buffer: Array, new: Array, start: Array) -> Array:
    """See `write`; what lies past the end is dropped."""

    def one_row(buffer: Array, new: Array, start: Array) -> Array:
        slots = start + jnp.arange(new.shape[1])
        return buffer.at[:, slots].set(new, mode="drop", unique_indices=True)

    return jax.vmap(one_row)(buffer, new, start)


def row_by_row(buffer: Array, new: Array, start: Array) -> Array:
    rows = new.shape[0]
    if rows > _MAX_UNROLLED_ROWS or pieces("batch") > 1:
        return scatter(buffer, new, start)
    for b in range(rows):
        buffer = jax.lax.dynamic_update_slice(buffer, new[b : b + 1], (b, 0, start[b], 0))
    return buffer


WRITE = Op(scatter, {"cpu": row_by_row})


def write(buffer: Array, new: Array, start: Array, *, platform: Platform | None = None) -> Array:
    """Writes ``new`` [B, G, T, H] into ``buffer`` [B, G, S, H] at slot ``start`` [B] of each row.

    The caller guarantees ``start + T <= S``: `dynamic_update_slice` would shift what lies past the
    end onto valid slots.
    """
    written: Array = WRITE.on(platform)(buffer, new.astype(buffer.dtype), start)
    return written


def write_at(buffer: Array, new: Array, slots: Array) -> Array:
    """Writes token t of ``new`` [B, G, T, H] into slot ``slots`` [B, T]; past the end: nowhere."""

    def one_row(buffer: Array, new: Array, slots: Array) -> Array:
        return buffer.at[:, slots].set(new, mode="drop")

    return jax.vmap(one_row)(buffer, new.astype(buffer.dtype), slots)


def waiting_for(start: Array, read: Array) -> Array:
    """``start`` [B], made to depend on ``read`` [B], which is never negative.

    XLA's copy insertion needs a data dependence to see that a buffer was read before it is written:
    without one the compiled loop copies every cache (docs/design.md). That ``read`` is never
    negative the compiler does not know.
    """
    return start + jnp.minimum(read, 0)
