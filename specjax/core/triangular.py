"""Unit-triangular systems, in operations that every compiler fuses.

LAPACK's solver, which XLA calls on CPU, has threads of its own: two calls at a time from a program
that is itself run by several threads may wait for each other for ever. And a call into a library is
a kernel that nothing fuses with, where there are a handful of tokens.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core.types import Array

_FEW = 16  # rows: one fused loop; more would be too much code
_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def solve_unit_lower(lower: Array, right: Array) -> Array:
    """U of (I + L) U = R.

    Args:
      lower: [..., T, T]; L is what lies below its diagonal, nothing else of it counts.
      right: R, [..., T, V].
    """
    if right.shape[-2] <= _FEW:
        return _row_by_row(lower, right)
    size = right.shape[-2]
    more = 2 ** (size - 1).bit_length() - size

    def padded(x: Array, columns: int) -> Array:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, more), (0, columns)])

    return _product(_inverse(padded(lower, more)), padded(right, 0))[..., :size, :]


def _row_by_row(lower: Array, right: Array) -> Array:
    rows: list[Array] = []
    for t in range(right.shape[-2]):
        row = right[..., t : t + 1, :]
        for s, known in enumerate(rows):
            row = row - lower[..., t : t + 1, s : s + 1] * known
        rows.append(row)
    return jnp.concatenate(rows, axis=-2)


def _inverse(lower: Array) -> Array:
    """(I + L)^-1 [..., T, T] for T a power of two: of blocks on the diagonal, ever larger ones.

    [A    ]^-1    [ A^-1            ]
    [C   D]     = [-D^-1 C A^-1   D^-1]
    """
    *batch, size, _ = lower.shape
    inverse = jnp.ones((*batch, size, 1, 1), lower.dtype)  # [..., blocks, width, width]
    width = 1
    while width < size:
        count = size // (2 * width)
        blocks, pair = lower.reshape(*batch, count, 2, width, count, 2, width), np.arange(count)
        corner = jnp.moveaxis(blocks[..., pair, 1, :, pair, 0, :], 0, -3)
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        mixed = -_product(_product(second, corner), first)
        above = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
        inverse = jnp.concatenate([above, jnp.concatenate([mixed, second], axis=-1)], axis=-2)
        width *= 2
    return inverse[..., 0, :, :]
