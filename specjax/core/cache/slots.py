"""What entries with slots share: how they are written, zeros, room for more, and poison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from specjax.core.cache.block import Part
from specjax.core.ops import Write, write_all
from specjax.core.sharding import constrain
from specjax.core.types import Array


class Slotted:
    """An entry that is written a slot a token: those of many layers are written at once."""

    def writes(self, part: Part, length: Array, count: Array) -> tuple[Write, ...]:
        """What must be written where to append the first ``count`` [B] tokens of ``part``."""
        raise NotImplementedError

    def written(self, arrays: Sequence[Array]) -> Any:
        """The entry with what `writes` made of its arrays, in that order."""
        raise NotImplementedError

    def commit(self, part: Part, length: Array, count: Array) -> Any:
        return commit_all((self,), (part,), length, count)[0]


def commit_all(
    entries: Sequence[Any], block: Sequence[Part], length: Array, count: Array
) -> tuple[Any, ...]:
    """Every entry with the first ``count`` [B] tokens of its part behind ``length`` [B]."""
    pairs = list(zip(entries, block, strict=True))
    asked = [e.writes(p, length, count) if isinstance(e, Slotted) else () for e, p in pairs]
    platforms = [e.platform for e in entries if isinstance(e, Slotted)]  # type: ignore[attr-defined]
    every = [one for writes in asked for one in writes]
    arrays = iter(write_all(every, platform=platforms[0] if platforms else None))
    return tuple(
        e.written([next(arrays) for _ in writes]) if writes else e.commit(p, length, count)
        for (e, p), writes in zip(pairs, asked, strict=True)
    )


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
