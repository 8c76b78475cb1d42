"""The likeliest token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core.ops.op import Op
from specjax.core.platform import Platform
from specjax.core.sharding import axis_size
from specjax.core.types import Array

_LAST = np.iinfo(np.int32).max


def in_pairs(x: Array, names: Array | None = None) -> Array:
    """One reduction of (value, index) pairs: [..., V] -> [...] int32."""
    if names is None:
        return jnp.argmax(x, axis=-1).astype(jnp.int32)
    least = jnp.array(-jnp.inf, x.dtype), jnp.int32(_LAST)
    pairs = x, jnp.broadcast_to(names, x.shape)
    found: Array = jax.lax.reduce(pairs, least, _larger, (x.ndim - 1,))[1]
    return found


def _larger(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Of two pairs that with the larger value, NaN the largest, or of equal ones the lower name."""
    first = (a[0] > b[0]) | (a[0] != a[0]) | ((a[0] == b[0]) & (a[1] < b[1]))
    return jnp.where(first, a[0], b[0]), jnp.where(first, a[1], b[1])


def in_two_reductions(x: Array, names: Array | None = None) -> Array:
    """The largest value, then the lowest index that holds it, each in vector registers.

    XLA's CPU compiler reduces pairs one at a time, which takes ten times as long (docs/design.md,
    "Fast on CPU"). Where an entry is NaN the last index is returned here.
    """
    if axis_size("model") > 1:  # split: one exchange of pairs, not two
        return in_pairs(x, names)
    largest = x == x.max(-1, keepdims=True)
    if names is not None:
        # (Selected, names would count as copied, which reports on programs look for.)
        wide = jnp.broadcast_to(names, x.shape)
        held = jnp.maximum(wide, jnp.where(largest, 0, _LAST)).min(-1)
        return jnp.minimum(held, names.max())
    last = x.shape[-1] - 1
    index = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jnp.where(largest, index, last).min(-1)


ARGMAX = Op(in_pairs, {"cpu": in_two_reductions})


def argmax(x: Array, *, names: Array | None = None, platform: Platform | None = None) -> Array:
    """The index of the largest entry of ``x`` [..., V] -> [...] int32; the lowest one wins ties.

    With ``names`` [V] int32, each another, the name of that entry, and the lowest name wins.
    """
    index: Array = ARGMAX.on(platform)(x, names)
    return index
