"""Keys and values of every token: slot = position."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from specjax.core.cache import slots as lay
from specjax.core.cache.block import Part
from specjax.core.ops import Cached, Seen, Write, attend, attend_blocks
from specjax.core.platform import Platform
from specjax.core.types import Array, pytree, static
from specjax.core.view import Ranges, View


@pytree
class Full(lay.Slotted):
    """Slot s of row b holds the token at position s, and is valid iff ``s < length[b]``."""

    keys: Array  # [B, G, S, H]
    values: Array  # [B, G, S, Hv]
    # The logical axis of the heads on a mesh; None: every device has all of them.
    axis: str | None = static(default="kv_heads")
    platform: Platform | None = static(default=None)  # it is read and written for; None: here

    @classmethod
    def empty(
        cls,
        rows: int,
        slots: int,
        heads: int,
        head_dim: int,
        dtype: jnp.dtype,
        *,
        axis: str | None = "kv_heads",
    ) -> Full:
        """Zeros; one buffer a leaf, as the state is donated and a buffer can be donated once."""
        new = lambda: lay.zeros(rows, heads, slots, head_dim, dtype, axis)
        return cls(new(), new(), axis)

    def attend(
        self,
        q: Array,
        new: Part,
        length: Array,
        view: View,
        *,
        scale: float | None = None,
        sinks: Array | None = None,
    ) -> Array:
        """Softmax attention of ``q`` [B, N, T, H] over the cache and the block -> [B, N, T, Hv].

        ``new`` is keys [B, G, U, H] and values [B, G, U, Hv] of the block, ``length`` [B] the
        cache's. ``scale`` is ``H ** -0.5`` by default; ``sinks`` as in
        `ops.attend`.
        """
        keys, values = new
        how: dict[str, Any] = {"scale": scale, "sinks": sinks, "platform": self.platform}
        size = self.keys.shape[2]
        if not size and (ranges := view.known_ranges) is not None:
            return over_ranges(q, new, ranges, **how)
        cached = None
        if size:
            seen, axes = valid_slots(size, length)[:, None], heads_axes(self.axis)
            cached = Cached(self.keys, self.values, seen, length, axes)
        return attend(q, keys, values, view.visible, cached, **how)

    def writes(self, part: Part, length: Array, count: Array) -> tuple[Write, ...]:
        """All of ``part``; what lies behind ``count`` is stale."""
        del count
        both = zip((self.keys, self.values), part, strict=True)
        return tuple(Write(old, new, length, self.axis) for old, new in both)

    def written(self, arrays: Sequence[Array]) -> Any:
        keys, values = (lay.pin(x, self.axis) for x in arrays)
        return dataclasses.replace(self, keys=keys, values=values)

    def cut(self, length: Array, to: Array) -> tuple[Full, Array]:
        """What lies behind is stale."""
        del length
        return self, to

    def loses(self, length: int) -> bool:
        del length
        return False

    def grow(self, slots: int) -> Full:
        keys, values = (lay.pin(lay.widened(x, slots), self.axis) for x in (self.keys, self.values))
        return dataclasses.replace(self, keys=keys, values=values)

    def stale(self, length: Array) -> Full:
        hidden = jnp.arange(self.keys.shape[2])[None, :] >= length[:, None]
        keys, values = lay.poison((self.keys, self.values), hidden)
        return dataclasses.replace(self, keys=keys, values=values)

    def filled(self, length: int) -> float:
        return length / max(self.keys.shape[2], 1)

    def placed(self, platform: Platform | None, replicated: bool) -> Full:
        axis = None if replicated else self.axis
        return dataclasses.replace(self, axis=axis, platform=platform)


def over_ranges(q: Array, new: Part, ranges: Ranges, **how: Any) -> Array:
    """Attention of queries [B, N, T, H] over a block of a range each, and nothing else."""
    seen = Seen.columns(ranges.begin, ranges.end, q.shape[0])
    return attend_blocks(q, (), (new[0], new[1]), seen, **how)


def heads_axes(axis: str | None) -> tuple[str | None, str | None]:
    """The logical axes of the heads of queries, and of an entry that is split so."""
    return (None if axis is None else "heads"), axis


def valid_slots(size: int, length: Array) -> Array:
    """[B, S] bool: the slots that hold a committed token."""
    return jnp.arange(size)[None, :] < length[:, None]
