"""A product in a kernel of our own, interpreted, against its reference."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core.ops import gated
from specjax.core.ops.gated import GatedInOneKernel
from specjax.core.ops.linear import InOneKernel, product
from specjax.core.platform import Platform


def check(rows: int, width: int, columns: int, dtype: Any) -> None:
    """In float32 equal to rounding; in bfloat16, whose sums are float32 too, one step apart."""
    rng = np.random.default_rng(rows)
    drawn = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    x, w = (y.astype(dtype) for y in (drawn(rows, width), drawn(columns, width) * width**-0.5))
    for out in {jnp.dtype(jnp.float32), jnp.dtype(dtype)}:
        want, got = (
            jax.jit(way, static_argnums=2)(x, w, out) for way in (product, InOneKernel(True))
        )
        assert got.shape == want.shape and got.dtype == want.dtype == out
        close = 1e-5 if out == jnp.float32 else 2**-7
        numbers = (y.astype(jnp.float32) for y in (got, want))
        np.testing.assert_allclose(*numbers, rtol=close, atol=close)
    both = jnp.concatenate([w, w[::-1]])
    plain = Platform("gpu", kernels="xla")
    want = jax.jit(lambda: gated(x, both, jax.nn.silu, platform=plain))()
    got = jax.jit(lambda: GatedInOneKernel(True)(x[None], both, jax.nn.silu, None))()[0]
    assert got.shape == want.shape and got.dtype == want.dtype == dtype
    close = 1e-5 if dtype == jnp.float32 else 2**-6  # of two roundings
    numbers = (y.astype(jnp.float32) for y in (got, want))
    np.testing.assert_allclose(*numbers, rtol=close, atol=close)
