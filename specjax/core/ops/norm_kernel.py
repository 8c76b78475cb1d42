"""A sum of two states and its norm in one GPU kernel, written in Pallas for Triton.

A program of the kernel takes one state, which it reads once and keeps in registers.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from specjax.core.ops.flash import power
from specjax.core.ops.norm import Norm
from specjax.core.types import Array


def add_norm_once(
    x: Array, more: Array | None, weight: Array, norm: Norm, interpret: bool
) -> tuple[Array, Array]:
    """`add_norm`, of what `norm.unfit` has nothing against."""
    shape, width = x.shape, x.shape[-1]
    flat = lambda y: y.reshape(-1, width)
    states = [flat(y) for y in (x, more) if y is not None]

    def add_and_norm(states: Any, weight: Any, *out: Any) -> None:
        row, column = pl.program_id(0), jnp.arange(power(width))
        there = column < width
        full = lambda y: triton.load(y.at[row, column], mask=there, other=0).astype(jnp.float32)
        # As outside: a sum is rounded before it is normed.
        total = functools.reduce(jnp.add, map(full, states)).astype(x.dtype)
        full_total = total.astype(jnp.float32)
        scale = jax.lax.rsqrt((full_total * full_total).sum() / width + norm.eps)
        gain = norm.gain(triton.load(weight.at[column], mask=there, other=0), x.dtype)
        normed = norm.multiplied(full_total * scale, gain, x.dtype)
        for ref, values in zip(out, (normed, total)):
            triton.store(ref.at[row, column], values, mask=there)

    found = pl.pallas_call(
        add_and_norm,
        out_shape=[jax.ShapeDtypeStruct(states[0].shape, x.dtype)] * len(states),
        grid=(states[0].shape[0],),
        compiler_params=triton.CompilerParams(
            num_warps=min(max(power(width) // 512, 1), 8), num_stages=1
        ),
        interpret=interpret,
        name="add_norm",
    )(states, weight)
    normed, *total = (y.reshape(shape) for y in found)
    return (total[0] if total else x), normed
