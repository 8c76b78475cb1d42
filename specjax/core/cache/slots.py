"""What entries with slots share: zeros, room for more, and poison."""

from __future__ import annotations

import jax.numpy as jnp

from specjax.core.sharding import constrain
from specjax.core.types import Array


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
