"""Keys and values of the last tokens: slot = position mod the number of slots."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from specjax.core.cache import slots as lay
from specjax.core.cache.block import Part
from specjax.core.cache.full import heads_axes, over_ranges
from specjax.core.ops import Cached, Write, attend
from specjax.core.platform import Platform
from specjax.core.types import Array, pytree, static
from specjax.core.view import View


@pytree
class Ring(lay.Slotted):
    """The tokens that a window of attention may still see, and memory for no more.

    R slots suffice for a window of R + 1: a token sees itself and those before it, and it is not
    in the cache yet. Only what is kept is written, so nothing that may still be seen is
    overwritten, however few the slots and however wide the block. A text shorter than the window
    has fewer.
    """

    keys: Array  # [B, G, R, H]
    values: Array  # [B, G, R, Hv]
    window: int = static()  # a token sees itself and the window - 1 before it
    # The window counts from the block's begin, not from each of its tokens: all of them see the
    # last ``window`` tokens of the cache.
    from_start: bool = static(default=False)
    axis: str | None = static(default="kv_heads")
    platform: Platform | None = static(default=None)

    @classmethod
    def empty(
        cls,
        rows: int,
        slots: int,
        heads: int,
        head_dim: int,
        dtype: jnp.dtype,
        *,
        window: int,
        from_start: bool = False,
        axis: str | None = "kv_heads",
    ) -> Ring:
        """Zeros, for texts of ``slots`` tokens."""
        size = min(slots, most_slots(window, from_start))
        new = lambda: lay.zeros(rows, heads, size, head_dim, dtype, axis)
        return cls(new(), new(), window, from_start, axis)

    def positions(self, length: Array) -> Array:
        """[B, R] int32: the latest committed position of each slot; negative where none is."""
        size, last = self.keys.shape[2], length[:, None] - 1
        return last - (last - jnp.arange(size)[None, :]) % size

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
        """Attends as `Full.attend` does, over the window."""
        keys, values = new
        how: dict[str, Any] = {"scale": scale, "sinks": sinks, "platform": self.platform}
        ranges = None if self.keys.shape[2] or self.from_start else view.known_ranges
        if ranges is not None:
            begin = jnp.maximum(ranges.begin, ranges.end - self.window)
            return over_ranges(q, new, dataclasses.replace(ranges, begin=begin), **how)
        if self.from_start:
            oldest = length[:, None, None] - self.window - 1  # [B, 1, 1]: the last one not seen
        else:
            oldest = view.positions(length)[:, :, None] - self.window  # [B, T, 1]
        here = length[:, None] + view.depth  # [B, U]
        visible = view.visible & (here[:, None, :] > oldest)
        cached = None
        if self.keys.shape[2]:
            held = self.positions(length)[:, None, :]
            reach = jnp.minimum(length, self.keys.shape[2])
            seen, axes = (held >= 0) & (held > oldest), heads_axes(self.axis)
            cached = Cached(self.keys, self.values, seen, reach, axes)
        return attend(q, keys, values, visible, cached, **how)

    def writes(self, part: Part, length: Array, count: Array) -> tuple[Write, ...]:
        """Those of the first ``count`` [B] tokens that the window may still see."""
        size, place = self.keys.shape[2], jnp.arange(part[0].shape[2])[None, :]
        # Of a part longer than the ring only the last tokens: two never share a slot.
        kept = (place < count[:, None]) & (place >= count[:, None] - size)
        slots = jnp.where(kept, (length[:, None] + place) % max(size, 1), size)
        both = zip((self.keys, self.values), part, strict=True)
        return tuple(Write(old, new, slots, self.axis) for old, new in both)

    def written(self, arrays: Sequence[Array]) -> Any:
        keys, values = (lay.pin(x, self.axis) for x in arrays)
        return dataclasses.replace(self, keys=keys, values=values)

    def cut(self, length: Array, to: Array) -> tuple[Ring, Array]:
        """What was overwritten is lost: it can as long as no slot has been used twice."""
        whole = (length <= self.keys.shape[2]) | (to == length)
        return self, jnp.where(whole, to, 0)

    def loses(self, length: int) -> bool:
        return length > most_slots(self.window, self.from_start)

    def grow(self, slots: int) -> Ring:
        """Only a ring shorter than its window grows: then no slot has been used twice."""
        size = min(slots, most_slots(self.window, self.from_start))
        if size <= self.keys.shape[2]:
            return self
        keys, values = (lay.pin(lay.widened(x, size), self.axis) for x in (self.keys, self.values))
        return dataclasses.replace(self, keys=keys, values=values)

    def stale(self, length: Array) -> Ring:
        held = self.positions(length)
        reach = self.window if self.from_start else self.window - 1
        hidden = (held < 0) | (held < length[:, None] - reach)
        keys, values = lay.poison((self.keys, self.values), hidden)
        return dataclasses.replace(self, keys=keys, values=values)

    def filled(self, length: int) -> float:
        return min(length / max(self.keys.shape[2], 1), 1.0)

    def placed(self, platform: Platform | None, replicated: bool) -> Ring:
        axis = None if replicated else self.axis
        return dataclasses.replace(self, axis=axis, platform=platform)


def most_slots(window: int, from_start: bool) -> int:
    """R of a long text: what the first token of a block may see of the cache."""
    return window if from_start else max(window - 1, 1)
