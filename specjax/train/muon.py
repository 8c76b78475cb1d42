"""Muon (Jordan et al. 2024): momentum, orthogonalised, for the matrices of the hidden layers.

The same update as `optax.contrib.muon`; its products are taken in bfloat16, which is what makes it
affordable on a CPU, where the float32 ones cost as much as two thousand tokens of gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from specjax.core.types import Array

_COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of the quintic, steepest at zero
_STEPS = 5


def orthogonalize(x: Array) -> Array:
    """The orthogonal factor of ``x`` [M, N], up to singular values of about 0.7 to 1.2.

    Five Newton-Schulz steps in bfloat16; the result is float32.
    """
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    x = (x / (jnp.linalg.norm(x) + 1e-8)).astype(jnp.bfloat16)
    # Without the barrier the transpose is folded into the first product, which then contracts the
    # first axis of both operands: jaxlib 0.10.2 has no such bfloat16 product on CPU.
    x = jax.lax.optimization_barrier(x)

    def times_transposed(a: Array, b: Array) -> Array:
        return jnp.einsum("mi,ni->mn", a, b, preferred_element_type=jnp.float32)

    c0, c1, c2 = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = times_transposed(x, x)
        half = gram.astype(jnp.bfloat16)
        mix = (c1 * gram + c2 * times_transposed(half, half)).astype(jnp.bfloat16)
        mixed = jnp.einsum("mn,ni->mi", mix, x, preferred_element_type=jnp.float32)
        x = (c0 * x.astype(jnp.float32) + mixed).astype(jnp.bfloat16)
    x = jax.lax.optimization_barrier(x).astype(jnp.float32)
    return x if wide else x.T


def scale_by_muon(*, momentum: float = 0.95, rms: float = 0.2) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised, scaled to the root mean square that Adam's updates have.

    With that scale (Liu et al. 2025, arXiv:2502.16982) Muon and Adam share one learning rate.
    """

    def orthogonal(update: Array) -> Array:
        return rms * max(update.shape) ** 0.5 * orthogonalize(update)

    def finish(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params
        return jax.tree.map(orthogonal, updates)

    return optax.chain(optax.trace(momentum, nesterov=True), optax.stateless(finish))
