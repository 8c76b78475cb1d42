"""Products of a few rows with a weight in one GPU kernel, and what is made of them there.

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
from specjax.core.ops.norm import Norm
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


@dataclasses.dataclass(frozen=True)
class Normed:
    """The first operand's norm is multiplied in its place (`ops.norm_product`)."""

    norm: Norm
    weight: Array  # [I]
    squares: Array  # [M, P] float32, whose sum is that of a row's squares


def product(x: Array, w: Array, dtype: Any, *, interpret: bool) -> Array:
    """``x`` [M, I] times ``w`` [O, I] of its type, summed in float32 -> [M, O] in ``dtype``."""
    return _multiply(x, w, Rounded(dtype), interpret, "multiply")[0]


def gated(
    x: Array,
    w: Array,
    act: Callable[[Array], Array],
    normed: Normed | None = None,
    *,
    interpret: bool,
) -> Array:
    """``act(x W_1) * (x W_2)`` of ``x`` [M, I] and both halves of ``w`` [2 O, I] -> [M, O]."""
    rounded = lambda y: y.astype(x.dtype).astype(jnp.float32)
    finish = lambda gate, up: act(rounded(gate)) * rounded(up)
    name = "multiply_and_gate" if normed is None else "norm_multiply_and_gate"
    halves = Halves((0, w.shape[0] // 2), finish)
    return _multiply(x, w, Rounded(x.dtype), interpret, name, halves, normed=normed)[0]


def of_norm(x: Array, w: Array, normed: Normed, *, interpret: bool) -> Array:
    """The norm of ``x`` [M, I] times ``w`` [O, I] -> [M, O] in the type of ``x``."""
    return _multiply(x, w, Rounded(x.dtype), interpret, "norm_and_multiply", normed=normed)[0]


def added(x: Array, y: Array, w: Array, *, interpret: bool) -> tuple[Array, Array]:
    """``x`` [M, O] and, rounded, ``y`` [M, I] times ``w`` [O, I].

    Returns:
      The sum [M, O] in the type of ``x``, and the squares of it [M, P] float32, of each of the P
      programs that it comes from added up.
    """
    total, squares = _multiply(y, w, Added(x.dtype), interpret, "multiply_and_add", more=x)
    return total, squares


def largest(x: Array, w: Array, names: Array | None, *, interpret: bool) -> tuple[Array, Array]:
    """The largest of ``x`` [M, I] times ``w`` [O, I] that each of P programs met, and its name.

    Args:
      x, w: of one type; summed in float32.
      names: [O] int32, of the columns of the product; None: their indices. Of equal ones the
        lowest is named.

    Returns:
      [M, P] float32 and int32.
    """
    found = _multiply(x, w, Largest(), interpret, "multiply_and_compare", more=names)
    return found[0], found[1]


@dataclasses.dataclass(frozen=True)
class Halves:
    """Where the parts of a weight begin, and what is made of the products with them."""

    begins: tuple[int, ...] = (0,)
    finish: Callable[..., Array] = lambda y: y


@dataclasses.dataclass(frozen=True)
class Tile:
    """Where in the result [M, O] the products of a program belong."""

    row: Array  # [R]
    column: Array  # [C]
    real_row: Array  # [R]: within it, as of the next two
    real_column: Array  # [C]
    there: Array  # [R, C]

    @property
    def at(self) -> tuple[Array, Array]:
        return self.row[:, None], self.column[None, :]


@dataclasses.dataclass(frozen=True)
class Rounded:
    """Products are the result, [M, O]."""

    dtype: Any

    def results(self, rows: int, out: int, programs: int) -> list[jax.ShapeDtypeStruct]:
        del programs
        return [jax.ShapeDtypeStruct((rows, out), self.dtype)]

    def store(self, made: Array, tile: Tile, more: Any, results: Any) -> None:
        del more
        triton.store(results[0].at[tile.at], made.astype(self.dtype), mask=tile.there)


@dataclasses.dataclass(frozen=True)
class Added:
    """The sum with ``more`` [M, O], and the squares of it that a program meets, [M, P]."""

    dtype: Any

    def results(self, rows: int, out: int, programs: int) -> list[jax.ShapeDtypeStruct]:
        shape = jax.ShapeDtypeStruct
        return [shape((rows, out), self.dtype), shape((rows, programs), jnp.float32)]

    def store(self, made: Array, tile: Tile, more: Any, results: Any) -> None:
        # As outside: each is rounded, the product and the sum.
        before = triton.load(more.at[tile.at], mask=tile.there, other=0).astype(jnp.float32)
        product = made.astype(self.dtype).astype(jnp.float32)
        total = (before + product).astype(self.dtype)
        kept = jnp.where(tile.there, total.astype(jnp.float32), 0)
        squares = results[1].at[tile.row, pl.program_id(1)]
        triton.store(squares, (kept * kept).sum(1), mask=tile.real_row)
        triton.store(results[0].at[tile.at], total, mask=tile.there)


@dataclasses.dataclass(frozen=True)
class Largest:
    """The largest product that a program meets, and its index or what ``more`` [O] says of it.

    [M, P] both.
    """

    def results(self, rows: int, out: int, programs: int) -> list[jax.ShapeDtypeStruct]:
        del out
        return [jax.ShapeDtypeStruct((rows, programs), t) for t in (jnp.float32, jnp.int32)]

    def store(self, made: Array, tile: Tile, more: Any, results: Any) -> None:
        given = jnp.where(tile.there, made, -jnp.inf)
        top = given.max(1)
        last = jnp.iinfo(jnp.int32).max
        names = tile.column
        if more is not None:
            names = triton.load(more.at[tile.column], mask=tile.real_column, other=last)
        # (What is NaN is held, too: else nothing might be, and no name be found.)
        held = tile.there & ((given == top[:, None]) | (given != given))
        name = jnp.where(held, names[None, :], last).min(1)
        place = tile.row, pl.program_id(1)
        for result, found in zip(results, (top, name), strict=True):
            triton.store(result.at[place], found, mask=tile.real_row)


def _multiply(
    x: Array,
    w: Array,
    ending: Rounded | Added | Largest,
    interpret: bool,
    name: str,
    halves: Halves = Halves(),
    *,
    normed: Normed | None = None,
    more: Array | None = None,
) -> list[Array]:
    """What ``ending`` makes, with ``more``, of what ``halves`` makes of products."""
    begins = halves.begins
    (rows, width), out = x.shape, w.shape[0] // len(begins)
    plan = Plan.of(x, len(begins))
    programs = -(-out // plan.columns)
    # (Otherwise float32 would be multiplied in TF32.)
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    read_norm = None if normed is None else (normed.weight, normed.squares)

    def multiply(x: Any, w: Any, of_norm: Any, more: Any, *results: Any) -> None:
        row = pl.program_id(0) * plan.rows + jnp.arange(plan.rows)
        column = pl.program_id(1) * plan.columns + jnp.arange(plan.columns)
        real_row, real = row < rows, column < out
        there = real_row[:, None]
        if normed is not None:
            gains, squares = of_norm
            scale = _scale(squares, row, there, width, normed.norm.eps)

        def fold(i: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            place = i * plan.depth + jnp.arange(plan.depth)
            inside = (place < width)[None, :]
            given = triton.load(x.at[row[:, None], place[None, :]], mask=there & inside, other=0)
            if normed is not None:
                read = triton.load(gains.at[place], mask=place < width, other=0)
                gain = jnp.broadcast_to(normed.norm.gain(read, given.dtype)[None, :], given.shape)
                scaled = given.astype(jnp.float32) * scale
                given = normed.norm.multiplied(scaled, gain, given.dtype)

            def part(begin: int, total: Array) -> Array:
                at = w.at[(begin + column)[:, None], place[None, :]]
                weights = triton.load(at, mask=real[:, None] & inside, other=0)
                dots: Array = triton.dot(given, weights, trans_b=True, precision=exact)
                return total + dots

            return tuple(map(part, begins, sums))

        none = jnp.zeros((plan.rows, plan.columns), jnp.float32)
        sums = jax.lax.fori_loop(0, -(-width // plan.depth), fold, (none,) * len(begins))
        tile = Tile(row, column, real_row, real, there & real[None, :])
        ending.store(halves.finish(*sums), tile, more, results)

    with multiplies():
        found: list[Array] = pl.pallas_call(
            multiply,
            out_shape=ending.results(rows, out, programs),
            # Programs of the same weights one after the other, which then are in the cache.
            grid=(-(-rows // plan.rows), programs),
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=plan.stages),
            interpret=interpret,
            name=name,
        )(x, w, read_norm, more)
    return found


def _scale(squares: Any, row: Array, there: Array, width: int, eps: float) -> Array:
    """What ``row`` [M] are multiplied by to have a mean square of 1: [M, 1]."""
    shares = squares.shape[1]
    share = jnp.arange(power(shares))
    mask = there & (share < shares)[None, :]
    parts = triton.load(squares.at[row[:, None], share[None, :]], mask=mask, other=0)
    found: Array = jax.lax.rsqrt(parts.sum(1, keepdims=True) / width + eps)
    return found
