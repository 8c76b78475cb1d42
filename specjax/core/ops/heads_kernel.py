"""Heads cut out of products, normed and rotated by one GPU kernel, in Pallas for Triton.

A program of the kernel takes some tokens of one head of one row. What a feature is turned with, the
one half a head further, is read a second time.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from specjax.core.ops.flash import power
from specjax.core.ops.heads import Form, Heads, Rotation
from specjax.core.ops.norm import Norm
from specjax.core.types import Array

_TOKENS = 16  # of a program, at most


def cut(
    arrays: tuple[Array, ...], rotation: Rotation, weights: Any, form: Form, interpret: bool
) -> Heads:
    """`heads` of products [B, T, ..], three or one of all, that `heads.unfit` says nothing of."""
    n, g, width = form.queries, form.groups, form.width
    rows, tokens, columns = arrays[0].shape
    joined = len(arrays) == 1
    stride = (columns - 2 * g * width if joined else columns) // n  # from query to query
    size = min(1 << (tokens - 1).bit_length(), _TOKENS)
    first = (0, n * stride, n * stride + g * width) if joined else (0, 0, 0)
    sources = arrays * 3 if joined else arrays

    def cut_heads(arrays: Any, rotation: Any, weights: Any, *out: Any) -> None:
        head, tile, row = (pl.program_id(i) for i in range(3))
        token = tile * size + jnp.arange(size)
        refs = arrays * 3 if joined else arrays
        q_weight, k_weight = (None, None) if form.norm is None else weights
        kinds = (
            (0, n, stride, q_weight),
            (n, n + g, width, k_weight),
            (n + g, n + 2 * g, width, None),
        )
        for i, (begin, end, step, weight) in enumerate(kinds):

            @pl.when((head >= begin) & (head < end))
            def _(i: int = i, begin: int = begin, step: int = step, weight: Any = weight) -> None:
                own = head - begin
                source = Source(refs[i], row, token, first[i] + own * step, form)
                found = source.plain() if i == 2 else source.rotated(rotation, weight)
                column, there = source.columns(), source.there()
                at = out[i].at[row, token[:, None], own, column[None, :]]
                triton.store(at, found.astype(out[i].dtype), mask=there)

    shapes = [(rows, tokens, count, width) for count in (n, g, g)]
    found = pl.pallas_call(
        cut_heads,
        out_shape=[jax.ShapeDtypeStruct(shape, sources[0].dtype) for shape in shapes],
        grid=(n + 2 * g, -(-tokens // size), rows),
        compiler_params=triton.CompilerParams(num_warps=1 if size < 4 else 4, num_stages=1),
        interpret=interpret,
        name="cut_heads",
    )(arrays, rotation, None if form.norm is None else weights)
    q, k, v = (x.swapaxes(1, 2) for x in found)
    return q, k, v


@dataclasses.dataclass(frozen=True)
class Source:
    """A head of some tokens, where it lies in a product."""

    ref: Any  # [B, T, ..]
    row: Any
    token: Any  # [M]
    first: Any  # its first column
    form: Form

    def columns(self) -> Array:
        """[C], a power of two."""
        found: Array = jnp.arange(power(self.form.width))
        return found

    def there(self) -> Array:
        """[M, C] bool."""
        inside = self.columns() < self.form.width
        found: Array = (self.token < self.ref.shape[1])[:, None] & inside[None, :]
        return found

    def read(self, column: Array) -> Array:
        """[M, C] in the type of the product; 0 where nothing is."""
        at = self.ref.at[self.row, self.token[:, None], (self.first + column)[None, :]]
        found: Array = triton.load(at, mask=self.there(), other=0)
        return found

    def plain(self) -> Array:
        """[M, C]."""
        return self.read(self.columns())

    def rotated(self, rotation: Rotation, weight: Any) -> Array:
        """Normed if there is a ``weight``, and rotated: [M, C] float32."""
        column, size = self.columns(), rotation.cos.shape[-1]
        half = size // 2
        other = jnp.where(column < half, column + half, column - half)
        other = jnp.where(column < size, other, column)
        x, swapped = self.read(column), self.read(other)
        if weight is not None:
            norm, inside = self.form.norm, column < self.form.width
            assert isinstance(norm, Norm)
            full = x.astype(jnp.float32)
            mean = (full * full).sum(1, keepdims=True) / self.form.width
            scale = jax.lax.rsqrt(mean + norm.eps)

            def normed(y: Array, column: Array) -> Array:
                gain = norm.gain(triton.load(weight.at[column], mask=inside, other=0), y.dtype)
                scaled = y.astype(jnp.float32) * scale
                return norm.multiplied(scaled, jnp.broadcast_to(gain[None, :], y.shape), y.dtype)

            x, swapped = normed(x, column), normed(swapped, other)
        by_row = self.row if rotation.cos.shape[0] > 1 else 0
        mask = self.there() & (column < size)[None, :]

        def angles(ref: Any, behind: int) -> Array:
            at = ref.at[by_row, 0, self.token[:, None], column[None, :]]
            found: Array = triton.load(at, mask=mask, other=behind)
            return found

        kept: Array = x.astype(jnp.float32) * angles(rotation.cos, 1)
        return kept + swapped.astype(jnp.float32) * angles(rotation.sin, 0)
