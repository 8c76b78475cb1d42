"""Root mean square normalisation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.core.types import Array


class RMSNorm(nnx.Module):
    """``w * x / sqrt(mean(x^2) + eps)``, the statistics in float32 (Llama's kind)."""

    def __init__(self, features: int, *, eps: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        del rngs
        self.weight = nnx.Param(jnp.ones((features,), dtype), axes=(None,))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        """[..., D] -> [..., D] in the type of ``x``."""
        full = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(full * full, axis=-1, keepdims=True) + self.eps)
        normed = (full * scale).astype(x.dtype)
        weight = self.weight[...].astype(x.dtype)
        return normed * jax.lax.broadcast_in_dim(weight, x.shape, (x.ndim - 1,))
