"""Blocks of new tokens written into many caches by one GPU kernel, where they lie.

Every program of the kernel writes some tokens of one head of one row of one cache. Written in
Pallas for Triton, as `ops.flash`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from specjax.core.ops.flash import as_bits, power, read, write
from specjax.core.trips import updates
from specjax.core.types import Array

_TOKENS = 32  # of a program, at most


def put(
    buffers: Sequence[Array],
    new: Sequence[Array],
    at: Sequence[Array],
    *,
    which: Sequence[int],
    interpret: bool,
) -> list[Array]:
    """`write_all` of buffers [B, G, S, H] and new tokens [B, G, T, H].

    Those of buffer i go to the slots ``at[which[i]]``: [B], the first token's, or [B, T], of each;
    past the end is nowhere.
    """
    kept, buffers = buffers, [as_bits(x) for x in buffers]
    turned = [as_bits(x.swapaxes(1, 2)) for x in new]  # as projections have them
    tokens = max(x.shape[1] for x in turned)
    size = min(power(tokens), _TOKENS)
    tiles = -(-tokens // size)

    def write_blocks(new: Any, at: Any, old: Any, *out: Any) -> None:
        del old  # the same memory as ``out``
        place, group, row = (pl.program_id(i) for i in range(3))
        token = place % tiles * size + jnp.arange(size)
        for i, buffer in enumerate(out):

            @pl.when(place // tiles == i)
            def _(x: Any = new[i], at: Any = at[which[i]], buffer: Any = buffer) -> None:
                there = (token < x.shape[1]) & (group < x.shape[2])
                if len(at.shape) == 1:
                    slot = triton.load(at.at[row]) + token
                else:
                    slot = triton.load(at.at[row, token], mask=there, other=0)
                values = read(x, (row, token, group), there)
                there, end = there & (slot < buffer.shape[2]), buffer.shape[2]
                # (Interpreted, a place that is not written is written with what was there before.)
                write(buffer, (row, group, jnp.where(there, slot, end)), there, values)

    heads, rows = max(x.shape[1] for x in buffers), buffers[0].shape[0]
    with updates(len(buffers)):
        found = pl.pallas_call(
            write_blocks,
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in buffers],
            grid=(len(buffers) * tiles, heads, rows),
            input_output_aliases={len(new) + len(at) + i: i for i in range(len(buffers))},
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
            interpret=interpret,
            name="write_blocks",
        )(turned, list(at), list(buffers))
    back = jax.lax.bitcast_convert_type
    return [x if x.dtype == old.dtype else back(x, old.dtype) for x, old in zip(found, kept)]
