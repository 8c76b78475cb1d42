"""Attention over a cache and the block in one GPU kernel that reads valid slots alone.

A program of the kernel takes some queries of one key/value head of one row, and a share of the
slots that the row's text has filled, a tile at a time under a running softmax (Milakov and
Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135). Where rows and heads are too
few to keep a GPU busy the slots are split among several programs, whose sums a second kernel adds
up. The first share takes the block's own tokens as well.

Written in Pallas for Triton: sides of tiles are powers of two, and at least 16 in a product. What
is beyond the edge of an array is neither read nor written.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from specjax.core.ops.one_softmax import Cached, Known, Parts, Queries
from specjax.core.quantised import Quantised
from specjax.core.trips import reads_valid_slots
from specjax.core.types import Array, pytree

_UNSEEN = -1e30
_Sums = tuple[Array, Array, Array]  # largest score [M], weights [M], weighted values [M, Hv]


@pytree
class Given:
    """What the kernel reads; in its body each array is a reference to memory."""

    queries: tuple[Any, ...]  # [B, T, N, H] a part
    keys: tuple[Any, ...]  # [B, U, G, H] a part, of the block
    values: Any  # [B, U, G, Hv]
    visible: Any  # [B or 1, T, U] int8
    old_keys: tuple[Any, ...]  # [B, G, S, H] a part, of the cache
    old_values: Any  # [B, G, S, Hv]
    seen: Any  # [B or 1, T or 1, S] int8
    reach: Any  # [B] int32
    sinks: Any  # [N], or None


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the work is cut up. None of it was tuned, which takes a GPU."""

    rows: int
    tokens: int
    block: int
    groups: int
    repeats: int  # query heads of a key/value head
    slots: int
    values: int  # width of a value
    queries: int  # of a program
    tile: int  # slots at a time
    splits: int
    warps: int
    stages: int

    @classmethod
    def of(cls, given: Given) -> Plan:
        rows, tokens, heads, _ = given.queries[0].shape
        _, block, groups, values = given.values.shape
        slots = given.old_values.shape[2]
        repeats = heads // groups
        # Sums are kept in registers: 64 numbers a thread of eight warps at most.
        queries = min(power(repeats * tokens), max(16, (1 << 14) // power(values)))
        arrays = jax.tree.leaves((given.old_keys, given.old_values))
        slot = sum(power(x.shape[3]) * x.dtype.itemsize for x in arrays if x.shape[3] > 1)
        # Tiles of keys and values stay within 80 KiB: the least shared memory is 99.
        stages = 2 if slot <= 1024 else 1
        tile = min(max(below((80 << 10) // (slot * stages)), 16), 64)
        # About one program a multiprocessor; no share without a tile.
        programs = rows * groups * -(-repeats * tokens // queries)
        splits = min(below(max(128 // programs, 1)), 32, below(max(slots // tile, 1)))
        warps = 8 if queries * power(values) > 1 << 13 else 4
        sizes = (rows, tokens, block, groups, repeats, slots, values)
        return cls(*sizes, queries, tile, splits, warps, stages)

    @property
    def heads(self) -> int:
        return self.groups * self.repeats

    @property
    def grid(self) -> tuple[int, int, int]:
        tiles = -(-self.repeats * self.tokens // self.queries)
        return tiles * self.splits, self.groups, self.rows

    def outputs(self, dtype: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
        """What is attended to; or of each share the three sums."""
        shape = (self.rows, self.tokens, self.heads)
        if self.splits == 1:
            return (jax.ShapeDtypeStruct((*shape, self.values), dtype),)
        sums = jax.ShapeDtypeStruct((*shape, self.splits), jnp.float32)
        return sums, sums, jax.ShapeDtypeStruct((*sums.shape, self.values), jnp.float32)


def power(size: int) -> int:
    """The power of two, at least 16, that is not below ``size``."""
    return max(16, 1 << (size - 1).bit_length())


def below(size: int) -> int:
    """The power of two that is not above ``size``."""
    return 1 << (size.bit_length() - 1)


def flash(
    q: Queries,
    k: Parts,
    v: Known,
    visible: Array,
    cached: Cached,
    scale: float | None,
    sinks: Array | None = None,
    *,
    interpret: bool = False,
) -> Array:
    """`attend`, of what `flash_decode.unfit` has nothing against.

    ``interpret``: as an XLA program, where there is no GPU.
    """
    parts = lambda x: x if isinstance(x, tuple) else (x,)
    # As projections have them: nothing is transposed in front of the kernel.
    turned = lambda x: jax.tree.map(lambda y: y.swapaxes(1, 2), x)
    given = Given(
        turned(parts(q)),
        turned(parts(k)),
        turned(v),
        visible.astype(jnp.int8),
        parts(cached.keys),
        cached.values,
        cached.seen.astype(jnp.int8),
        cached.reach,
        sinks,
    )
    given = jax.tree.map(as_bits, given)
    plan, dtype = Plan.of(given), given.queries[0].dtype
    factor = scale or sum(part.shape[-1] for part in given.queries) ** -0.5
    before = len(jax.tree.leaves((given.queries, given.keys, given.values, given.visible)))
    count = len(jax.tree.leaves((given.old_keys, given.old_values, given.seen)))

    def attend_valid_slots(given: Given, *out: Any) -> None:
        Program(given, plan, factor).run(out)

    with reads_valid_slots(plan.slots, before, count):
        found = pl.pallas_call(
            attend_valid_slots,
            out_shape=plan.outputs(dtype),
            grid=plan.grid,
            compiler_params=triton.CompilerParams(num_warps=plan.warps, num_stages=plan.stages),
            interpret=interpret,
            name="attend_valid_slots",
        )(given)
    out = found[0] if plan.splits == 1 else combined(found, dtype, interpret=interpret)
    return out.swapaxes(1, 2)


def as_bits(x: Array) -> Array:
    """Floats of 8 bits as bytes: not every GPU converts them."""
    return jax.lax.bitcast_convert_type(x, jnp.uint8) if x.dtype == jnp.float8_e4m3fn else x


class Program:
    """One program of the kernel: M queries of a head and row, and a share of the slots."""

    def __init__(self, given: Given, plan: Plan, factor: float):
        self.given, self.plan, self.factor = given, plan, factor
        self.group, self.row = pl.program_id(1), pl.program_id(2)
        self.split = pl.program_id(0) % plan.splits
        index = pl.program_id(0) // plan.splits * plan.queries + jnp.arange(plan.queries)
        self.live = index < plan.repeats * plan.tokens
        self.token = index // plan.repeats
        self.head = self.group * plan.repeats + index % plan.repeats
        where = (self.row, self.token, self.head)
        self.queries = [read(part, where, self.live) for part in given.queries]
        self.dtype = given.queries[0].dtype

    def run(self, out: tuple[Any, ...]) -> None:
        """Attends, and writes what came of it."""
        top, total, sums = self.block(self.cache(self.begun()))
        where = (self.row, self.token, self.head)
        if self.plan.splits == 1:
            write(out[0], where, self.live, sums / jnp.where(total > 0, total, 1.0)[:, None])
            return
        triton.store(out[0].at[(*where, self.split)], top, mask=self.live)
        triton.store(out[1].at[(*where, self.split)], total, mask=self.live)
        write(out[2], (*where, self.split), self.live, sums)

    def begun(self) -> _Sums:
        """Nothing seen yet; a sink is a score without a value, counted in the first share."""
        size = self.plan.queries
        top, total = jnp.full((size,), _UNSEEN, jnp.float32), jnp.zeros((size,), jnp.float32)
        if self.given.sinks is not None:
            sink = triton.load(self.given.sinks.at[self.head], mask=self.live, other=0)
            first = self.live & (self.split == 0)
            top = jnp.where(first, sink.astype(jnp.float32), top)
            total = jnp.where(first, 1.0, total)
        return top, total, jnp.zeros((size, power(self.plan.values)), jnp.float32)

    def cache(self, so_far: _Sums) -> _Sums:
        """Of the tiles that the row's text fills, this program's share."""
        given, size, here = self.given, self.plan.tile, (self.row, self.group)
        reach = triton.load(given.reach.at[self.row])
        tiles = (reach + size - 1) // size
        share = (tiles + self.plan.splits - 1) // self.plan.splits
        begin = self.split * share
        end = jnp.minimum(begin + share, tiles)
        mask_row = self.row if given.seen.shape[0] > 1 else 0

        def fold(i: Array, so_far: _Sums) -> _Sums:
            slot = (begin + i) * size + jnp.arange(size)
            filled = slot < reach
            if given.seen.shape[1] > 1:
                where = (mask_row, self.token[:, None], slot[None, :])
                inside = self.live[:, None] & filled[None, :]
                seen = triton.load(given.seen.at[where], mask=inside, other=0) != 0
            else:
                one = triton.load(given.seen.at[mask_row, 0, slot], mask=filled, other=0)
                filled = filled & (one != 0)
                seen = jnp.broadcast_to(filled[None, :], (self.plan.queries, size))
            at = (*here, slot)
            keys = [self.known(x, at, filled) for x in given.old_keys]
            return self.fold(so_far, keys, self.known(given.old_values, at, filled), seen)

        found: _Sums = jax.lax.fori_loop(0, jnp.maximum(end - begin, 0), fold, so_far)
        return found

    def block(self, so_far: _Sums) -> _Sums:
        """The tokens that are being fed, in the first share."""
        given, size = self.given, min(self.plan.tile, power(self.plan.block))
        row = self.row if given.visible.shape[0] > 1 else 0
        # (As a choice of 1 or 0 the compiler takes the number for a bool.)
        tiles = -(-self.plan.block // size) * jnp.maximum(1 - self.split, 0)

        def fold(i: Array, so_far: _Sums) -> _Sums:
            token = i * size + jnp.arange(size)
            there = token < self.plan.block
            where = (row, self.token[:, None], token[None, :])
            inside = self.live[:, None] & there[None, :]
            seen = triton.load(given.visible.at[where], mask=inside, other=0) != 0
            at = (self.row, token, self.group)
            keys = [self.known(x, at, there) for x in given.keys]
            return self.fold(so_far, keys, self.known(given.values, at, there), seen)

        found: _Sums = jax.lax.fori_loop(0, tiles, fold, so_far)
        return found

    def known(self, x: Any, where: tuple[Array, ...], there: Array) -> tuple[Array, Array | None]:
        """Keys or values [S, H] in the type of queries, and a factor of each, if they have one."""
        if not isinstance(x, Quantised):
            return read(x, where, there), None
        ref: Any = x.factors
        factors = triton.load(ref.at[(*where, 0)], mask=there, other=0)
        values = read(x.values, where, there)
        values = of_bits(values) if values.dtype == jnp.uint8 else values
        return values.astype(self.dtype), factors

    def fold(
        self,
        so_far: _Sums,
        keys: list[tuple[Array, Array | None]],
        values: tuple[Array, Array | None],
        seen: Array,
    ) -> _Sums:
        """One tile more; ``seen`` [M, S]."""
        top, total, sums = so_far
        scores = functools.reduce(jnp.add, map(scores_of, self.queries, keys)) * self.factor
        scores = jnp.where(seen, scores, _UNSEEN)
        higher = jnp.maximum(top, scores.max(1))
        shrunk = jnp.exp(top - higher)
        weights = jnp.where(seen, jnp.exp(scores - higher[:, None]), 0.0)
        total = total * shrunk + weights.sum(1)
        value, factors = values
        weights = weights if factors is None else weights * factors[None, :]
        new = triton.dot(weights.astype(value.dtype), value)
        return higher, total, sums * shrunk[:, None] + new


def scores_of(q: Array, keys: tuple[Array, Array | None]) -> Array:
    """[M, H] and [S, H], with a factor a key -> [M, S] float32."""
    key, factors = keys
    dots: Array = triton.dot(q, key, trans_b=True)
    return dots if factors is None else dots * factors[None, :]


def of_bits(x: Array) -> Array:
    """Bytes of float8_e4m3fn -> float32, without its NaN: a float32's exponent begins 120 lower."""
    bits = x.astype(jnp.int32)
    size = jax.lax.bitcast_convert_type((bits & 0x7F) << 20, jnp.float32) * 2.0**120
    return jnp.where(bits >= 0x80, -size, size)


def combined(shares: tuple[Array, ...], dtype: Any, *, interpret: bool) -> Array:
    """The shares' sums [B, T, N, splits] and [B, T, N, splits, Hv] added up: [B, T, N, Hv]."""
    *shape, splits, width = shares[2].shape

    def add_shares(top: Any, total: Any, sums: Any, out: Any) -> None:
        where, share = tuple(pl.program_id(i) for i in (2, 1, 0)), jnp.arange(splits)
        tops = triton.load(top.at[(*where, share)])
        weights = jnp.exp(tops - tops.max(0))
        whole = (triton.load(total.at[(*where, share)]) * weights).sum(0)
        found = (read(sums, (*where, share), share >= 0) * weights[:, None]).sum(0)
        column = jnp.arange(found.shape[0])
        found = (found / jnp.where(whole > 0, whole, 1.0)).astype(dtype)
        triton.store(out.at[(*where, column)], found, mask=column < width)

    found: Array = pl.pallas_call(
        add_shares,
        out_shape=jax.ShapeDtypeStruct((*shape, width), dtype),
        grid=tuple(reversed(shape)),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="add_shares",
    )(*shares)
    return found


def _tile(ref: Any, where: tuple[Any, ...], there: Array) -> tuple[Any, Array]:
    """The part of ``ref`` at the places ``where``, of all its columns, and which of it is there."""
    width = ref.shape[-1]
    column = jnp.arange(power(width))
    places = (x[:, None] if x.ndim else x for x in where)
    mask = jnp.broadcast_to(there[:, None], (there.shape[0], column.shape[0]))
    if width < column.shape[0]:
        mask = mask & (column < width)[None, :]
    return ref.at[(*places, column[None, :])], mask


def read(ref: Any, where: tuple[Any, ...], there: Array) -> Array:
    """Rows [M, H] of an array at M places; 0 where it is not ``there``, and behind its width."""
    at, mask = _tile(ref, where, there)
    found: Array = triton.load(at, mask=mask, other=0)
    return found


def write(ref: Any, where: tuple[Any, ...], there: Array, rows: Array) -> None:
    """Writes rows [M, H] to M places, where they are ``there``."""
    at, mask = _tile(ref, where, there)
    triton.store(at, rows.astype(ref.dtype), mask=mask)
