"""Keys and values of every token in 8 bits: half the memory and half the bytes that a pass reads.

A head's key or value is rounded by itself, to values with one factor (`core.quantised`). The tokens
of a block are rounded before they are looked at, too: each is seen alike from within its block and
from the cache, so that what is written does not depend on how many tokens a pass is fed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from specjax.core.cache import slots as lay
from specjax.core.cache.base import Cache
from specjax.core.cache.block import Part
from specjax.core.cache.full import Full, heads_axes, valid_slots
from specjax.core.ops import Cached, Write, attend, tokens_of
from specjax.core.quantised import TYPES, Quantisation, Quantised, quantise
from specjax.core.types import Array, pytree, static
from specjax.core.view import View

_NAMES = ("keys", "values", "key_factors", "value_factors")


@pytree
class Rounded(Full):
    """A `Full` entry whose ``keys`` and ``values`` are 8 bits wide."""

    key_factors: Array = dataclasses.field(kw_only=True)  # [B, G, S, 1] float32
    value_factors: Array = dataclasses.field(kw_only=True)  # [B, G, S, 1] float32
    kind: Quantisation = static(kw_only=True)
    dtype: Any = static(kw_only=True)  # of activations

    @classmethod
    def like(cls, entry: Full, kind: Quantisation) -> Rounded:
        """An empty one for texts of as many tokens as ``entry``."""
        rows, heads, slots, width = entry.keys.shape

        def new(width: int, dtype: Any) -> Array:
            return lay.zeros(rows, heads, slots, width, dtype, entry.axis)

        return cls(
            new(width, TYPES[kind]),
            new(entry.values.shape[3], TYPES[kind]),
            entry.axis,
            entry.platform,
            key_factors=new(1, jnp.float32),
            value_factors=new(1, jnp.float32),
            kind=kind,
            dtype=entry.keys.dtype,
        )

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
        """Attends as `Full.attend` does, to rounded keys and values."""
        keys, values = (quantise(x, self.kind) for x in new)
        size, cached = self.keys.shape[2], None
        if size:
            known = Quantised(self.keys, self.key_factors, self.dtype)
            held = Quantised(self.values, self.value_factors, self.dtype)
            seen = valid_slots(size, length)[:, None]
            cached = Cached(known, held, seen, length, heads_axes(self.axis))
        how: dict[str, Any] = {"scale": scale, "sinks": sinks, "platform": self.platform}
        return attend(q, keys, values, view.visible, cached, **how)

    def writes(self, part: Part, length: Array, count: Array) -> tuple[Write, ...]:
        del count
        keys, values = (quantise(tokens_of(x), self.kind) for x in part)
        new = (keys.values, values.values, keys.factors, values.factors)
        both = zip(self._arrays, new, strict=True)
        return tuple(Write(old, x, length, self.axis) for old, x in both)

    def written(self, arrays: Sequence[Array]) -> Any:
        found: dict[str, Any] = {n: lay.pin(x, self.axis) for n, x in zip(_NAMES, arrays)}
        return dataclasses.replace(self, **found)

    @property
    def _arrays(self) -> tuple[Array, ...]:
        return tuple(getattr(self, name) for name in _NAMES)

    def grow(self, slots: int) -> Rounded:
        found: Rounded = self.written([lay.widened(x, slots) for x in self._arrays])
        return found

    def stale(self, length: Array) -> Rounded:
        """Poison lies in the factors: what is 8 bits wide has no NaN, or no room for more."""
        hidden = jnp.arange(self.keys.shape[2])[None, :] >= length[:, None]
        keys, values = lay.poison((self.key_factors, self.value_factors), hidden)
        # The largest that times any value is still a number.
        values = jnp.where(hidden[:, None, :, None], values / 1024, values)
        return dataclasses.replace(self, key_factors=keys, value_factors=values)

    def steps_from(self, part: Part) -> Array:
        """How far what is remembered is from ``part`` of as many tokens, [B, G, S, H + Hv].

        In steps of the kind: the distance of neighbours that can be kept, where the larger of both
        lies. Passes of other widths sum in another order, so that a number between two steps may
        come to lie on either.
        """
        held = (self.keys, self.key_factors), (self.values, self.value_factors)
        pairs = zip(held, part, strict=True)
        found = [_steps(*pair, quantise(new, self.kind), self.kind) for pair, new in pairs]
        return jnp.concatenate(found, axis=-1)


def _steps(values: Array, factors: Array, other: Quantised, kind: Quantisation) -> Array:
    a = values.astype(jnp.float32) * factors
    b = other.values.astype(jnp.float32) * other.factors
    size = jnp.maximum(factors, other.factors)  # of whole numbers all steps are equal
    if kind == "fp8":  # three bits behind the first, down to 2^-9
        largest = jnp.maximum(jnp.abs(a), jnp.abs(b)) / size
        size = size * jnp.exp2(jnp.floor(jnp.log2(jnp.maximum(largest, 2.0**-6))) - 3)
    return jnp.abs(a - b) / size


def rounded(cache: Cache, kind: Quantisation) -> Cache:
    """An empty cache with its `Full` entries in 8 bits; others, which are small, stay."""
    layers = (Rounded.like(e, kind) if type(e) is Full else e for e in cache.layers)
    return dataclasses.replace(cache, layers=tuple(layers))
