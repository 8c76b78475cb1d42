"""Products of a few rows with a weight in one GPU kernel, and gating in that of an MLP.

A program of the kernel takes some rows of the weight, [out, in] as in the checkpoints, and goes
along all of their width: each number is read once, and no sums of shares are left to add up.
Written in Pallas for Triton, as `ops.flash`: sides of tiles are powers of two, at least 16, and
what is beyond an edge is neither read nor written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from specjax.core.ops.flash import power
from specjax.core.trips import multiplies
from specjax.core.types import Array

_SHARED = 96 << 10  # bytes of tiles under way: the least shared memory is 99 KiB


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the work is cut up. None of it was tuned, which takes a GPU."""

    rows: int  # of x in a program
    columns: int  # of the result
    depth: int  # of the width at a time
    stages: int

    @classmethod
    def of(cls, x: Array, weights: int) -> Plan:
        """Of products with so many weights at once."""
        rows, size = min(power(x.shape[0]), 64), x.dtype.itemsize
        # 512 bytes of each row of the weights at a time, and fewer where x is tall.
        depth = min((512 if rows <= 32 else 256) // size, power(x.shape[1]))
        tiles = (rows + 32) * depth * size
        return cls(rows, 32 // weights, depth, min(max(_SHARED // tiles, 1), 4))


def product(x: Array, w: Array, dtype: Any, *, interpret: bool) -> Array:
    """``x`` [M, I] times ``w`` [O, I] of its type, summed in float32 -> [M, O] in ``dtype``."""
    return _multiply(x, w, (0,), lambda y: y, dtype, interpret, "multiply")


def gated(x: Array, w: Array, act: Callable[[Array], Array], *, interpret: bool) -> Array:
    """``act(x W_1) * (x W_2)`` of ``x`` [M, I] and both halves of ``w`` [2 O, I] -> [M, O]."""
    rounded = lambda y: y.astype(x.dtype).astype(jnp.float32)
    finish = lambda gate, up: act(rounded(gate)) * rounded(up)
    begins = (0, w.shape[0] // 2)
    return _multiply(x, w, begins, finish, x.dtype, interpret, "multiply_and_gate")


def _multiply(
    x: Array,
    w: Array,
    begins: tuple[int, ...],
    finish: Callable[..., Array],
    dtype: Any,
    interpret: bool,
    name: str,
) -> Array:
    """What ``finish`` makes of the products with the parts of ``w``, which begin there."""
    (rows, width), out = x.shape, w.shape[0] // len(begins)
    plan = Plan.of(x, len(begins))
    # (Otherwise float32 would be multiplied in TF32.)
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None

    def multiply(x: Any, w: Any, found: Any) -> None:
        row = pl.program_id(0) * plan.rows + jnp.arange(plan.rows)
        column = pl.program_id(1) * plan.columns + jnp.arange(plan.columns)
        there, real = (row < rows)[:, None], column < out

        def fold(i: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            place = i * plan.depth + jnp.arange(plan.depth)
            inside = (place < width)[None, :]
            given = triton.load(x.at[row[:, None], place[None, :]], mask=there & inside, other=0)

            def more(begin: int, total: Array) -> Array:
                at = w.at[(begin + column)[:, None], place[None, :]]
                weights = triton.load(at, mask=real[:, None] & inside, other=0)
                dots: Array = triton.dot(given, weights, trans_b=True, precision=exact)
                return total + dots

            return tuple(map(more, begins, sums))

        none = jnp.zeros((plan.rows, plan.columns), jnp.float32)
        sums = jax.lax.fori_loop(0, -(-width // plan.depth), fold, (none,) * len(begins))
        at = found.at[row[:, None], column[None, :]]
        triton.store(at, finish(*sums).astype(dtype), mask=there & real[None, :])

    with multiplies():
        made: Array = pl.pallas_call(
            multiply,
            out_shape=jax.ShapeDtypeStruct((rows, out), dtype),
            # Programs of the same weights one after the other, which then are in the cache.
            grid=(-(-rows // plan.rows), -(-out // plan.columns)),
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=plan.stages),
            interpret=interpret,
            name=name,
        )(x, w)
    return made
