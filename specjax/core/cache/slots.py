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
        return _written((self,), (part,), length, count)[0]


def commit_all(
    entries: Sequence[Any], block: Sequence[Part], length: Array, count: Array
) -> tuple[Any, ...]:
    """Every entry with the first ``count`` [B] tokens of its part behind ``length`` [B].

    One that commits in its own way does so; the others are written at once.
    """
    together = [getattr(type(e), "commit", None) is Slotted.commit for e in entries]
    pairs = list(zip(entries, block, together, strict=True))
    slotted, parts = [e for e, _, t in pairs if t], [p for _, p, t in pairs if t]
    written = iter(_written(slotted, parts, length, count))
    return tuple(next(written) if t else e.commit(p, length, count) for e, p, t in pairs)


def _written(
    entries: Sequence[Any], parts: Sequence[Part], length: Array, count: Array
) -> list[Any]:
    asked = [e.writes(part, length, count) for e, part in zip(entries, parts, strict=True)]
    platform = entries[0].platform if entries else None
    arrays = iter(write_all([one for writes in asked for one in writes], platform=platform))
    return [e.written([next(arrays) for _ in w]) for e, w in zip(entries, asked, strict=True)]


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
