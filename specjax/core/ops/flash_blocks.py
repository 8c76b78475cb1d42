"""Attention of many short blocks over one text in GPU kernels, forward and backward.

A program of the first two kernels takes the queries of a few blocks that read one key/value head,
and goes over the tiles of the text that they see under a running softmax, then over their own
slots; a program of the third takes a tile of the text and goes over the blocks that see it (Dao
2023, arXiv:2307.08691). Scores are never in memory; of a forward pass what is attended to and the
logarithm of each query's sum are kept. Of sorted blocks, as anchors are drawn, tiles that nobody
sees are passed over.

As `ops.flash` it is written in Pallas for Triton: sides of tiles are powers of two.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from specjax.core.dear import dear
from specjax.core.ops.flash import power, read, write
from specjax.core.types import Array, pytree

_UNSEEN = -1e30
_QUERIES, _TILE = 64, 64  # of a program, about; tokens of the text at a time


@pytree
class Given:
    """What the kernels read; in their bodies each array is a reference to memory."""

    q: Any  # [B, N, L, H], L = A * S slots of blocks
    own: Any  # of each pass keys and values [B, G, L, H]
    keys: Any  # [B, G, T, H]
    values: Any  # [B, G, T, H]
    begin: Any  # [B, L] int32
    end: Any  # [B, L] int32
    within: Any  # [S, S] int8


@pytree
class Kept:
    """What the backward pass reads beside."""

    by_out: Any  # [B, N, L, H]
    log_total: Any  # [B, N, L] float32
    # [B, N, L] float32: of the gradient by a query's weights, under them, less that by log_total
    mean: Any
    first: Any  # [B, tiles] int32: the first group of blocks that may see a tile of the text
    stop: Any  # [B, tiles] int32: the one behind the last


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the work is cut up. None of it was tuned, which takes a GPU."""

    rows: int
    heads: int
    groups: int
    slots: int
    text: int
    width: int
    size: int  # slots of a block
    factor: float  # of scores
    interpret: bool

    @classmethod
    def of(cls, given: Given, factor: float, interpret: bool) -> Plan:
        rows, heads, slots, width = given.q.shape
        _, groups, text, _ = given.keys.shape
        size = given.within.shape[0]
        return cls(rows, heads, groups, slots, text, width, size, factor, interpret)

    @property
    def repeats(self) -> int:
        """Query heads of a key/value head."""
        return self.heads // self.groups

    @property
    def part(self) -> int:
        """Slots of a program: of whole blocks."""
        return self.size * max(_QUERIES // (self.size * self.repeats), 1)

    @property
    def parts(self) -> int:
        return -(-self.slots // self.part)

    @property
    def tiles(self) -> int:
        return -(-self.text // _TILE)

    def call(self, kernel: Any, out: Any, grid: tuple[int, ...], name: str, *given: Any) -> Any:
        return pl.pallas_call(
            kernel,
            out_shape=out,
            grid=grid,
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
            interpret=self.interpret,
            name=name,
        )(*given)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def attend(given: Given, factor: float, interpret: bool) -> tuple[Array, Array]:
    """[B, N, L, H], see `attend_blocks`, and the logarithms of the sums of weights [B, N, L].

    ``factor`` is that of scores; ``interpret``: as an XLA program, where is no GPU.
    """
    found: tuple[Array, Array] = _forward(given, factor, interpret)[0]
    return found


def _forward(given: Given, factor: float, interpret: bool) -> Any:
    plan = Plan.of(given, factor, interpret)

    def attend_blocks(given: Given, out: Any, log_total: Any) -> None:
        queries = Queries(given, plan, pl.program_id(0), pl.program_id(1), pl.program_id(2))
        empty = jnp.full((queries.num,), _UNSEEN), jnp.zeros((queries.num,))
        so_far = (*empty, jnp.zeros((queries.num, power(plan.width))))
        so_far = queries.text(so_far, _fold)
        for key, value, seen in queries.own():
            so_far = _fold(so_far, key, value, seen, queries)
        top, total, sums = so_far
        write(out, queries.where, queries.live, sums / jnp.where(total > 0, total, 1.0)[:, None])
        found = top + jnp.log(jnp.where(total > 0, total, 1.0))
        triton.store(log_total.at[queries.where], found, mask=queries.live)

    shapes = (
        jax.ShapeDtypeStruct(given.q.shape, given.q.dtype),
        jax.ShapeDtypeStruct(given.q.shape[:3], jnp.float32),
    )
    grid = (plan.parts, plan.groups, plan.rows)
    found = tuple(map(dear, plan.call(attend_blocks, shapes, grid, "attend_blocks", given)))
    return found, (given, *found)


def _backward(factor: float, interpret: bool, kept: Any, by: tuple[Array, Array]) -> tuple[Given]:
    (by_out, by_log), (given, out, log_total) = by, kept
    plan = Plan.of(given, factor, interpret)
    mean = (by_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1) - by_log
    beside = Kept(by_out, log_total, mean, *_seeing(given, plan))
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)

    def queries_back(given: Given, kept: Kept, by_q: Any, by_own: Any) -> None:
        queries = Queries(given, plan, pl.program_id(0), pl.program_id(1), pl.program_id(2))
        back = Back(queries, kept)
        sums = queries.text(jnp.zeros((queries.num, power(plan.width))), back.by_queries)
        for (key, value, seen), refs in zip(queries.own(), by_own, strict=True):
            weights, slope = back.slopes(key, value, seen)
            sums = sums + triton.dot(slope, key)
            for ref, found in zip(refs, back.turned(weights, slope), strict=True):
                write(ref, queries.own_where, queries.own_there, found)
        write(by_q, queries.where, queries.live, sums)

    def text_back(given: Given, kept: Kept, by_keys: Any, by_values: Any) -> None:
        tile, group, row = pl.program_id(0), pl.program_id(1), pl.program_id(2)
        place = tile * _TILE + jnp.arange(_TILE)
        where, there = (row, group, place), place < plan.text
        key, value = read(given.keys, where, there), read(given.values, where, there)

        def fold(part: Array, so_far: tuple[Array, Array]) -> tuple[Array, Array]:
            queries = Queries(given, plan, part, group, row)
            back = Back(queries, kept)
            by_key, by_value = back.turned(*back.slopes(key, value, queries.sees(place)))
            return so_far[0] + by_key, so_far[1] + by_value

        zero = jnp.zeros((_TILE, power(plan.width)))
        first, stop = (triton.load(x.at[row, tile]) for x in (kept.first, kept.stop))
        sums = jax.lax.fori_loop(first, stop, fold, (zero, zero))
        for ref, found in zip((by_keys, by_values), sums):
            write(ref, where, there, found)

    grid = (plan.parts, plan.groups, plan.rows)
    shapes = (like(given.q), jax.tree.map(like, given.own))
    by_q, by_own = plan.call(queries_back, shapes, grid, "blocks_back", given, beside)
    of_text, grid = (like(given.keys), like(given.values)), (plan.tiles, plan.groups, plan.rows)
    by_keys, by_values = plan.call(text_back, of_text, grid, "blocks_text_back", given, beside)
    return (Given(by_q, by_own, by_keys, by_values, None, None, None),)


attend.defvjp(_forward, _backward)


class Queries:
    """The queries of some blocks, of all heads that read one key/value head of a row."""

    def __init__(self, given: Given, plan: Plan, part: Any, group: Any, row: Any):
        self.given, self.plan, self.group, self.row = given, plan, group, row
        self.num = power(plan.part * plan.repeats)
        index = jnp.arange(self.num)
        self.slot = part * plan.part + index // plan.repeats
        self.live = (index < plan.part * plan.repeats) & (self.slot < plan.slots)
        self.where = (row, group * plan.repeats + index % plan.repeats, self.slot)
        self.q = read(given.q, self.where, self.live)
        self.begin = triton.load(given.begin.at[row, self.slot], mask=self.live, other=plan.text)
        self.end = triton.load(given.end.at[row, self.slot], mask=self.live, other=0)
        own = jnp.arange(power(plan.part))
        self.own_slot = part * plan.part + own
        self.own_there = (own < plan.part) & (self.own_slot < plan.slots)
        self.own_where = (row, group, self.own_slot)

    def sees(self, place: Array) -> Array:
        """[M, K] bool: which tokens of the text."""
        seen: Array = self.begin[:, None] <= place[None, :]
        return seen & (place[None, :] < self.end[:, None])

    def text(self, so_far: Any, fold: Any) -> Any:
        """Folds in the tiles of the text that any of them sees."""

        def one(tile: Array, so_far: Any) -> Any:
            place = tile * _TILE + jnp.arange(_TILE)
            where, there = (self.row, self.group, place), place < self.plan.text
            key, value = (read(x, where, there) for x in (self.given.keys, self.given.values))
            return fold(so_far, key, value, self.sees(place), self)

        tiles = (self.begin.min() // _TILE, (self.end.max() + _TILE - 1) // _TILE)
        return jax.lax.fori_loop(*tiles, one, so_far)

    def own(self) -> Iterator[tuple[Array, Array, Array]]:
        """Of each pass keys and values of their own blocks, and which of them each sees."""
        size = self.plan.size
        one, other = self.slot[:, None], self.own_slot[None, :]
        same = (one // size == other // size) & self.live[:, None] & self.own_there[None, :]
        within = triton.load(self.given.within.at[one % size, other % size], mask=same, other=0)
        for pair in self.given.own:
            key, value = (read(x, self.own_where, self.own_there) for x in pair)
            yield key, value, within != 0


def _fold(so_far: Any, key: Array, value: Array, seen: Array, queries: Queries) -> Any:
    """One tile more: largest scores, sums of weights, weighted values."""
    top, total, sums = so_far
    scores = jnp.where(seen, _scores(queries, key), _UNSEEN)
    higher = jnp.maximum(top, scores.max(1))
    shrunk = jnp.exp(top - higher)
    weights = jnp.where(seen, jnp.exp(scores - higher[:, None]), 0.0)
    new = triton.dot(weights.astype(value.dtype), value)
    return higher, total * shrunk + weights.sum(1), sums * shrunk[:, None] + new


def _scores(queries: Queries, key: Array) -> Array:
    dots: Array = triton.dot(queries.q, key, trans_b=True) * queries.plan.factor
    return dots


class Back:
    """Gradients of what some queries attend to."""

    def __init__(self, queries: Queries, kept: Kept):
        self.queries, where, live = queries, queries.where, queries.live
        self.by_out = read(kept.by_out, where, live)
        self.log_total = triton.load(kept.log_total.at[where], mask=live, other=0)
        self.mean = triton.load(kept.mean.at[where], mask=live, other=0)

    def slopes(self, key: Array, value: Array, seen: Array) -> tuple[Array, Array]:
        """Weights [M, K], and the gradient by their scores."""
        scores = jnp.where(seen, _scores(self.queries, key), _UNSEEN)
        weights = jnp.where(seen, jnp.exp(scores - self.log_total[:, None]), 0.0)
        by_weights = triton.dot(self.by_out, value, trans_b=True)
        slope = weights * (by_weights - self.mean[:, None]) * self.queries.plan.factor
        return weights.astype(value.dtype), slope.astype(key.dtype)

    def by_queries(self, sums: Array, key: Array, value: Array, seen: Array, _: Any) -> Array:
        """The gradient by the queries, added to ``sums``."""
        found: Array = sums + triton.dot(self.slopes(key, value, seen)[1], key)
        return found

    def turned(self, weights: Array, slope: Array) -> tuple[Array, Array]:
        """What these queries add to the gradients by keys and values [K, H]."""
        by_key = triton.dot(slope, self.queries.q, trans_a=True)
        return by_key, triton.dot(weights, self.by_out, trans_a=True)


def _seeing(given: Given, plan: Plan) -> tuple[Array, Array]:
    """Which groups of blocks may see each tile of the text, from the first to behind the last."""
    pad = ((0, 0), (0, plan.parts * plan.part - plan.slots))
    shape = (plan.rows, 1, plan.parts, plan.part)
    begin = jnp.pad(given.begin, pad, constant_values=plan.text).reshape(shape).min(-1)
    end = jnp.pad(given.end, pad).reshape(shape).max(-1)
    start = (jnp.arange(plan.tiles) * _TILE)[None, :, None]
    sees = (begin < start + _TILE) & (end > start)  # [B, tiles, parts]
    first = sees.argmax(-1).astype(jnp.int32)
    stop = plan.parts - jnp.flip(sees, -1).argmax(-1).astype(jnp.int32)
    return first, jnp.where(sees.any(-1), stop, first)
