"""Products of a few rows with a weight in one GPU kernel.

A program of the kernel takes some rows of the weight, [out, in] as in the checkpoints, and goes
along all of their width: each number is read once, and no sums of shares are left to add up.
Written in Pallas for Triton, as `ops.flash`: sides of tiles are powers of two, at least 16, and
what is beyond an edge is neither read nor written.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from specjax.core.ops.flash import power
from specjax.core.types import Array

_COLUMNS = 32  # of the result, in a program
_SHARED = 96 << 10  # bytes of tiles under way: the least shared memory is 99 KiB


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the work is cut up. None of it was tuned, which takes a GPU."""

    rows: int  # of x in a program
    depth: int  # of the width at a time
    stages: int

    @classmethod
    def of(cls, x: Array) -> Plan:
        rows, size = min(power(x.shape[0]), 64), x.dtype.itemsize
        # 512 bytes of each row of the weight at a time, and fewer where x is tall.
        depth = min((512 if rows <= 32 else 256) // size, power(x.shape[1]))
        tiles = (rows + _COLUMNS) * depth * size
        return cls(rows, depth, min(max(_SHARED // tiles, 1), 4))


def product(x: Array, w: Array, dtype: Any, *, interpret: bool) -> Array:
    """``x`` [M, I] times ``w`` [O, I] of its type, summed in float32 -> [M, O] in ``dtype``."""
    (rows, width), out, plan = x.shape, w.shape[0], Plan.of(x)
    # (Otherwise float32 would be multiplied in TF32.)
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None

    def multiply(x: Any, w: Any, found: Any) -> None:
        row = pl.program_id(0) * plan.rows + jnp.arange(plan.rows)
        column = pl.program_id(1) * _COLUMNS + jnp.arange(_COLUMNS)
        there, real = (row < rows)[:, None], column < out

        def fold(i: Array, total: Array) -> Array:
            place = i * plan.depth + jnp.arange(plan.depth)
            inside = (place < width)[None, :]
            given = triton.load(x.at[row[:, None], place[None, :]], mask=there & inside, other=0)
            weights = triton.load(
                w.at[column[:, None], place[None, :]], mask=real[:, None] & inside, other=0
            )
            dots: Array = triton.dot(given, weights, trans_b=True, precision=exact)
            return total + dots

        none = jnp.zeros((plan.rows, _COLUMNS), jnp.float32)
        total = jax.lax.fori_loop(0, -(-width // plan.depth), fold, none)
        at = found.at[row[:, None], column[None, :]]
        triton.store(at, total.astype(dtype), mask=there & real[None, :])

    made: Array = pl.pallas_call(
        multiply,
        out_shape=jax.ShapeDtypeStruct((rows, out), dtype),
        # Programs of the same weights one after the other, which then are in the cache.
        grid=(-(-rows // plan.rows), -(-out // _COLUMNS)),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=plan.stages),
        interpret=interpret,
        name="multiply",
    )(x, w)
    return made
