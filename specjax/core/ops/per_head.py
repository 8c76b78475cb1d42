"""A product with a matrix of each head's own."""

from __future__ import annotations

import jax.numpy as jnp

from specjax.core.ops.op import Op
from specjax.core.platform import Platform
from specjax.core.types import Array


def reference(x: Array, w: Array, turned: bool) -> Array:
    """See `per_head`."""
    form = "bnti,noi->bnto" if turned else "bnti,nio->bnto"
    return jnp.einsum(form, x.astype(w.dtype), w, preferred_element_type=jnp.float32)


def on_cpu(x: Array, w: Array, turned: bool) -> Array:
    """XLA's CPU compiler has no product of bfloat16 matrices a head: they are converted first."""
    return reference(x.astype(jnp.float32), w.astype(jnp.float32), turned)


def on_tpu(x: Array, w: Array, turned: bool) -> Array:
    """A lone vector a head, which XLA multiplies in float32, is two for the matrix unit.

    Else the matrices are written out in float32 first, in every layer and cycle.
    """
    if x.shape[0] * x.shape[2] > 1 or w.dtype != jnp.bfloat16:
        return reference(x, w, turned)
    return reference(jnp.concatenate([x, x], axis=2), w, turned)[:, :, :1]


PER_HEAD = Op(reference, {"cpu": on_cpu, "tpu": on_tpu})


def per_head(
    x: Array, w: Array, *, turned: bool = False, platform: Platform | None = None
) -> Array:
    """``x`` [B, N, T, I] times ``w`` [N, I, O] -> [B, N, T, O] float32.

    ``turned``: ``w`` is [N, O, I].
    """
    found: Array = PER_HEAD.on(platform)(x, w, turned)
    return found
