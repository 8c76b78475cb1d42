"""Weights in 4 or 8 bits: short numbers, and a factor for each row, or each group of a row.

A matrix of values v, zero points z and factors s stands for ``s_og (v_oi - z_og)``, g being the
group of neighbours that i falls into. A product with it is that with v, which is exact in bfloat16,
and factors come behind the sum of a row, or of a group (`core.ops.linear`): nothing is unpacked
into memory. Both what is rounded as it is loaded (`quantise`) and what a checkpoint holds packed
are of this kind.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from specjax.core.types import Array, pytree, static

Quantisation = Literal["int8", "fp8"]
TYPES: dict[str, Any] = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}
_LARGEST = {"int8": 127.0, "fp8": 448.0}


@pytree
class Quantised:
    """A matrix [.., O, I], or a stack of them, with G groups a row."""

    values: Array  # [.., O, I] whole numbers or floats of 4 or 8 bits
    factors: Array  # [.., O, G] floats
    dtype: Any = static()  # that it is multiplied in, of the weights that are whole
    zeros: Array | None = None  # [.., O, G] int8, subtracted from values first

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def ndim(self) -> int:
        return self.values.ndim

    @property
    def size(self) -> int:
        return self.values.size

    @property
    def nbytes(self) -> int:
        return sum(num_bytes(x.shape, x.dtype) for x in jax.tree.leaves(self))

    @property
    def groups(self) -> int:
        """G."""
        return self.factors.shape[-1]

    @property
    def by_row(self) -> bool:
        """Whether a row has one factor and no zero point."""
        return self.groups == 1 and self.zeros is None

    def __getitem__(self, key: Any) -> Array:
        """The matrix written out, for a layer that does more with it than multiply."""
        whole = self.values.astype(jnp.float32)
        if self.zeros is not None:
            whole = whole - self._spread(self.zeros)
        return (whole * self._spread(self.factors)).astype(self.dtype)[key]

    def _spread(self, x: Array) -> Array:
        """[.., G] -> [.., I], each for the neighbours that it belongs to, or as it is."""
        x = x.astype(jnp.float32)
        if self.groups == 1:
            return x
        each = jnp.broadcast_to(x[..., None], (*x.shape, self.shape[-1] // self.groups))
        return each.reshape(self.shape)


def axes_of(axes: tuple[Any, ...], groups: int, zeros: bool) -> dict[str, tuple[Any, ...]]:
    """The axes of the arrays of a matrix with axes [.., O, I]."""
    shared = axes if groups > 1 else (*axes[:-1], None)
    found = {"values": axes, "factors": shared}
    return {**found, "zeros": shared} if zeros else found


def num_bytes(shape: tuple[int, ...], dtype: Any) -> int:
    """Of an array in a device's memory, where two numbers of 4 bits share a byte."""
    kind = jnp.finfo if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo
    small = jnp.dtype(dtype).itemsize == 1 and jnp.dtype(dtype) != jnp.bool_
    bits: int = kind(dtype).bits if small else 8 * jnp.dtype(dtype).itemsize
    return -(-math.prod(shape) * bits // 8)


def quantise(w: Array, kind: Quantisation) -> Quantised:
    """The nearest values of ``w`` [.., O, I], each row scaled to its largest; zeros stay zeros."""
    dtype, most = TYPES[kind], _LARGEST[kind]
    full = w.astype(jnp.float32)
    largest = jnp.abs(full).max(-1, keepdims=True)
    factors = jnp.where(largest > 0, largest, 1.0) / most
    values = full / factors
    values = jnp.round(values) if kind == "int8" else values
    return Quantised(values.astype(dtype), factors, w.dtype)


def check_quantisation(name: str, kind: str | None) -> None:
    """Raises ValueError, naming the argument, if there is no such kind."""
    if kind is not None and kind not in TYPES:
        raise ValueError(f"{name}={kind!r}: must be one of {', '.join(TYPES)}.")


quantise_in_place = jax.jit(quantise, static_argnames="kind", donate_argnums=0)
