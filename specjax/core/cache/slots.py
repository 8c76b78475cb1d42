"""What entries with slots share: zeros, poison, and the write of a block behind a row's length."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from specjax.core.platform import platform
from specjax.core.sharding import axis_size, constrain
from specjax.core.types import Array

# On CPU a per-row dynamic_update_slice is several times cheaper than a scatter; unrolled over the
# rows it stays readable to the compiler up to this many.
_MAX_UNROLLED_ROWS = 8


def zeros(
    rows: int, heads: int, slots: int, width: int, dtype: jnp.dtype, axis: str | None
) -> Array:
    """[B, G, S, H], sharded by rows and heads where there is a mesh."""
    return pin(jnp.zeros((rows, heads, slots, width), dtype), axis)


def pin(x: Array, axis: str | None) -> Array:
    """``x`` [B, G, S, H] split by rows, and by heads over the logical axis ``axis``."""
    return constrain(x, "batch", axis, None, None)


def widened(x: Array, slots: int) -> Array:
    """``x`` [B, G, S, H] with ``slots`` slots."""
    return jnp.pad(x, [(0, 0), (0, 0), (0, slots - x.shape[2]), (0, 0)])


def poison(arrays: tuple[Array, ...], hidden: Array) -> tuple[Array, ...]:
    """In slots ``hidden`` [B, S]: NaN in keys, and the largest number in values, the last array.

    A weight of 0 meets the values there: 0 times NaN is NaN, and masking them would copy the cache.
    """

    def one(x: Array, value: float) -> Array:
        return jnp.where(hidden[:, None, :, None], jnp.asarray(value, x.dtype), x)

    *keys, values = arrays
    return (*(one(x, jnp.nan) for x in keys), one(values, float(jnp.finfo(values.dtype).max)))


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


def write_at(buffer: Array, new: Array, slots: Array) -> Array:
    """Writes token t of ``new`` [B, G, T, H] into slot ``slots`` [B, T]; past the end: nowhere."""

    def one_row(buffer: Array, new: Array, slots: Array) -> Array:
        return buffer.at[:, slots].set(new, mode="drop")

    return jax.vmap(one_row)(buffer, new.astype(buffer.dtype), slots)
