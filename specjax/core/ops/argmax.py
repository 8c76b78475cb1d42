"""The likeliest token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from specjax.core.ops.op import Op
from specjax.core.platform import Platform
from specjax.core.sharding import axis_size
from specjax.core.types import Array


def in_pairs(x: Array) -> Array:
    """One reduction of (value, index) pairs: [..., V] -> [...] int32."""
    return jnp.argmax(x, axis=-1).astype(jnp.int32)


def in_two_reductions(x: Array) -> Array:
    """The largest value, then the lowest index that holds it, each in vector registers.

    XLA's CPU compiler reduces pairs one at a time, which takes ten times as long (docs/design.md,
    "Fast on CPU"). Where an entry is NaN the last index is returned here.
    """
    if axis_size("model") > 1:  # split: one exchange of pairs, not two
        return in_pairs(x)
    last = x.shape[-1] - 1
    index = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jnp.where(x == x.max(-1, keepdims=True), index, last).min(-1)


ARGMAX = Op(in_pairs, {"cpu": in_two_reductions})


def argmax(x: Array, *, platform: Platform | None = None) -> Array:
    """The index of the largest entry of ``x`` [..., V] -> [...] int32; the lowest one wins ties."""
    index: Array = ARGMAX.on(platform)(x)
    return index
