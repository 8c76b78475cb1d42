"""Root mean square normalisation, of the three kinds that families have.

All are ``gain * n(x)`` with ``n(x) = x / sqrt(mean(x^2) + eps)`` in float32. They differ in what
the gain is, and in where the product is rounded to the type of activations.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.core.types import Array


class RMSNorm(nnx.Module):
    """``w * round(n(x))`` (Llama's kind). ``precise``: w is float32 whatever the others are."""

    def __init__(
        self,
        features: int,
        *,
        eps: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        precise: bool = False,
    ):
        del rngs
        first = self.first((features,), jnp.dtype(jnp.float32) if precise else dtype)
        marks = {"precise": True} if precise else {}
        self.weight = nnx.Param(first, axes=(None,), **marks)
        self.eps = eps

    @staticmethod
    def first(shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        """The weights of a norm that only normalises."""
        return jnp.ones(shape, dtype)

    def __call__(self, x: Array) -> Array:
        """[..., D] -> [..., D] in the type of ``x``."""
        normed = self.normed(x).astype(x.dtype)
        return normed * _along(self.weight[...].astype(x.dtype), x)

    def normed(self, x: Array) -> Array:
        """n(x), float32."""
        full = x.astype(jnp.float32)
        return full * jax.lax.rsqrt(jnp.mean(full * full, axis=-1, keepdims=True) + self.eps)


class LateRoundedNorm(RMSNorm):
    """``round(w * n(x))`` (gpt-oss)."""

    def __call__(self, x: Array) -> Array:
        weight = self.weight[...].astype(jnp.float32)
        return (self.normed(x) * _along(weight, x)).astype(x.dtype)


class ZeroCentredNorm(RMSNorm):
    """``round((1 + w) * n(x))`` (Gemma, Qwen3.5): w is what the gain is above 1."""

    @staticmethod
    def first(shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        return jnp.zeros(shape, dtype)

    def __call__(self, x: Array) -> Array:
        gain = 1.0 + self.weight[...].astype(jnp.float32)
        return (self.normed(x) * _along(gain, x)).astype(x.dtype)


def _along(weight: Array, x: Array) -> Array:
    """[D], for every vector of ``x`` [..., D]."""
    return jax.lax.broadcast_in_dim(weight, x.shape, (x.ndim - 1,))
