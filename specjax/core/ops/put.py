"""Blocks of new tokens written into many caches by one GPU kernel, where they lie.

Every program of the kernel writes some tokens of one head of one row of one cache. What is still
as a product made it (`write.Columns`) is normed and rotated on the way. Written in Pallas for
Triton, as `ops.flash`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from specjax.core.ops.flash import as_bits, power, read, write
from specjax.core.ops.write import Columns
from specjax.core.trips import fills, updates
from specjax.core.types import Array

_TOKENS = 32  # of a program, at most


def put(
    buffers: Sequence[Array],
    arrays: Sequence[Array],
    *,
    which: Sequence[int],
    structure: Any,
    interpret: bool,
) -> list[Array]:
    """`write_all` of buffers [B, G, S, H].

    ``structure`` is that of two lists, whose leaves are ``arrays[i]`` for i in ``which``: of each
    buffer's new tokens, [B, T, G, H] or the columns that they are made of, and of the slots that
    they go to: [B], the first token's, or [B, T], of each; past the end is nowhere.
    """
    kept, buffers = buffers, [as_bits(x) for x in buffers]
    arrays = [as_bits(x) for x in arrays]
    sorted_out = lambda found: jax.tree.unflatten(structure, [found[i] for i in which])
    news: list[Any] = sorted_out(arrays)[0]
    whole = not any(isinstance(new, Columns) for new in news)
    widths = [(new if whole else getattr(new, "product", new)).shape[1] for new in news]
    tokens = max(widths)
    size = min(power(tokens), _TOKENS)
    tiles = -(-tokens // size)

    def write_blocks(arrays: Any, old: Any, *out: Any) -> None:
        del old  # the same memory as ``out``
        place, group, row = (pl.program_id(i) for i in range(3))
        token = place % tiles * size + jnp.arange(size)
        for i, given in enumerate(zip(*sorted_out(arrays), out, strict=True)):

            @pl.when(place // tiles == i)
            def _(given: Any = given, width: int = widths[i]) -> None:
                new, at, buffer = given
                there = (token < width) & (group < buffer.shape[1])
                if len(at.shape) == 1:
                    slot = triton.load(at.at[row]) + token
                else:
                    slot = triton.load(at.at[row, token], mask=there, other=0)
                if isinstance(new, Columns):
                    values = made(new, row, token, group, there)
                else:
                    values = read(new, (row, token, group), there)
                there, end = there & (slot < buffer.shape[2]), buffer.shape[2]
                # (Interpreted, a place that is not written is written with what was there before.)
                write(buffer, (row, group, jnp.where(there, slot, end)), there, values)

    heads, rows = max(x.shape[1] for x in buffers), buffers[0].shape[0]
    with updates(len(buffers)) if whole else fills(len(buffers), tokens):
        found = pl.pallas_call(
            write_blocks,
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in buffers],
            grid=(len(buffers) * tiles, heads, rows),
            input_output_aliases={len(arrays) + i: i for i in range(len(buffers))},
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
            interpret=interpret,
            name="write_blocks",
        )(arrays, list(buffers))
    back = jax.lax.bitcast_convert_type
    return [x if x.dtype == old.dtype else back(x, old.dtype) for x, old in zip(found, kept)]


def made(new: Any, row: Array, token: Array, group: Array, there: Array) -> Array:
    """The heads [M, H] of a group at M tokens, cut out of `Columns`, normed and rotated."""
    width, column = new.width, jnp.arange(power(new.width))
    mask = there[:, None] & (column < width)[None, :]

    def head(turned: int) -> Array:
        """Its features, so many places further on."""
        at = (column + turned) % width
        place = (row, token[:, None], (new.first + group * width + at)[None, :])
        x = triton.load(new.product.at[place], mask=mask, other=0)
        if new.gain is None:
            return x
        full = x.astype(jnp.float32)
        mean = (full * full).sum(1) / width
        gain = triton.load(new.gain.at[at], mask=column < width, other=0).astype(x.dtype)
        return (full * jax.lax.rsqrt(mean + new.eps)[:, None]).astype(x.dtype) * gain[None, :]

    if new.turn is None:
        return head(0)
    cos, sin = (
        triton.load(x.at[row, 0, token[:, None], column[None, :]], mask=mask, other=0)
        for x in new.turn
    )
    x = head(0)
    swapped = head(width // 2).astype(jnp.float32)
    return (x.astype(jnp.float32) * cos + swapped * sin).astype(x.dtype)
