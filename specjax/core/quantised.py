"""Weights in 8 bits: whole numbers or short floats, and a factor for each row that is made of them.

A matrix of values v and factors s stands for ``s_o v_oi``, so that a product with it is the product
with v, each result times its factor: nothing is unpacked into memory. The values are exact in
bfloat16, in which they are multiplied.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from specjax.core.types import Array, pytree, static

Quantisation = Literal["int8", "fp8"]
_TYPES: dict[str, tuple[Any, float]] = {
    "int8": (jnp.int8, 127.0),
    "fp8": (jnp.float8_e4m3fn, 448.0),
}


@pytree
class Quantised:
    """A matrix [.., O, I], or a stack of them."""

    values: Array  # [.., O, I] int8 or float8
    factors: Array  # [.., O, 1] float32
    dtype: Any = static()  # that it is multiplied in, of the weights that are whole

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
        return self.values.nbytes + self.factors.nbytes

    def __getitem__(self, key: Any) -> Array:
        """The matrix written out, for a layer that does more with it than multiply."""
        whole = self.values.astype(jnp.float32) * self.factors
        return whole.astype(self.dtype)[key]


def quantise(w: Array, kind: Quantisation) -> Quantised:
    """The nearest values of ``w`` [.., O, I], each row scaled to its largest; zeros stay zeros."""
    dtype, most = _TYPES[kind]
    full = w.astype(jnp.float32)
    largest = jnp.abs(full).max(-1, keepdims=True)
    factors = jnp.where(largest > 0, largest, 1.0) / most
    values = full / factors
    values = jnp.round(values) if kind == "int8" else values
    return Quantised(values.astype(dtype), factors, w.dtype)


def check_quantisation(kind: str | None) -> None:
    """Raises ValueError if there is no such kind."""
    if kind is not None and kind not in _TYPES:
        raise ValueError(f"quantize={kind!r}: must be one of {', '.join(_TYPES)}.")


quantise_in_place = jax.jit(quantise, static_argnames="kind", donate_argnums=0)
