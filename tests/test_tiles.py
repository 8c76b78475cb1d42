"""Attention by tiles: a row reads its own text, and nothing else tells how it is read."""

from __future__ import annotations

import checks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_families

from specjax.core.ops import Cached
from specjax.core.ops.attend import ATTEND, reference
from specjax.core.ops.tiles import Follow, by_tiles
from specjax.core.quantised import quantise
from specjax.lab.compiler import hlo
from specjax.lab.compiler.cycle import unknown_loops
from specjax.lab.records.compiled import Loops

TILE, REACH = 8, (0, 1, 7, 8, 9, 33, 50)


def drawn(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def given(slots: int) -> list[jax.Array]:
    """Queries, keys, values of a block of three; keys, values of a cache, rubbish behind 50."""
    rows = len(REACH)
    block = [drawn(0, rows, 4, 3, 8), drawn(1, rows, 2, 3, 8), drawn(2, rows, 2, 3, 6)]
    cache = [drawn(3, rows, 2, 50, 8), drawn(4, rows, 2, 50, 6)]
    wide = [(0, 0), (0, 0), (0, slots - 50), (0, 0)]
    return [*block, *(jnp.pad(x, wide, constant_values=1e30) for x in cache)]


def cached(k: jax.Array, v: jax.Array, reach: jax.Array) -> Cached:
    seen = jnp.arange(k.shape[2])[None, None] < reach[:, None, None]
    return Cached(k, v, seen, reach)


@jax.jit
def tiled(q, k, v, old_k, old_v, reach):  # type: ignore[no-untyped-def]
    visible = jnp.tril(jnp.ones((1, 3, 3), bool))
    return by_tiles(q, k, v, visible, cached(old_k, old_v, reach), 0.3, drawn(9, 4), size=TILE)


def test_a_row_reads_tiles_of_its_own_text_alone() -> None:
    """In every other tile there is NaN, which masks do not keep out of a sum of values."""
    reach = jnp.asarray(REACH, jnp.int32)
    *block, k, v = given(53)  # slots that are no multiple of a tile
    behind = jnp.arange(53)[None] >= -(-reach[:, None] // TILE) * TILE
    poison = lambda x: jnp.where(behind[:, None, :, None], jnp.nan, x)
    got = tiled(*block, poison(k), poison(v), reach)
    known = cached(k, v, reach)
    visible = jnp.tril(jnp.ones((1, 3, 3), bool))
    want = reference(*block, visible, known, 0.3, drawn(9, 4))
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_neither_the_buffer_nor_the_rows_beside_it_change_a_bit() -> None:
    reach = jnp.asarray(REACH, jnp.int32)
    small, large = given(56), given(520)
    want = tiled(*small, reach)
    np.testing.assert_array_equal(want, tiled(*large, reach))
    order = jnp.asarray([6, 2, 0, 5, 1, 4, 3])
    turned = [x[order] for x in small]
    np.testing.assert_array_equal(want[order], tiled(*turned, reach[order]))
    shorter = reach.at[:3].set(20)  # of other rows
    np.testing.assert_array_equal(want[3:], tiled(*large, shorter)[3:])


@pytest.mark.parametrize("cost", [1.0, 2.5])
def test_what_is_cheaper_is_done(cost: float) -> None:
    """Also of a cache in 8 bits. Large caches only, of which it is known how far texts reach."""
    follow = Follow(reference, tile_bytes=1, sizes=(TILE, 512), cost=lambda queries: cost)
    *block, k, v = given(64)
    visible = jnp.tril(jnp.ones((1, 3, 3), bool))

    def run(follow, reach, k=k, v=v):  # type: ignore[no-untyped-def]
        return follow(*block, visible, cached(k, v, reach), None)

    short, long = jnp.asarray(REACH, jnp.int32) // 2, jnp.full((len(REACH),), 50, jnp.int32)
    for reach in (short, long):
        for kept in ((k, v), (quantise(k, "int8"), quantise(v, "int8"))):
            np.testing.assert_allclose(
                run(follow, reach, *kept), run(reference, reach, *kept), atol=2e-6
            )
    loops = str(jax.make_jaxpr(lambda reach: run(follow, reach))(short))
    assert ("while" in loops) and ("cond[" in loops) == (cost > 1)
    few = cached(k[:, :, :31], v[:, :, :31], short)  # of fewer tiles than four
    assert "while" not in str(jax.make_jaxpr(lambda x: follow(*block, visible, few, None))(0))
    unknown = cached(k, v, short)._replace(reach=None)
    assert "while" not in str(jax.make_jaxpr(lambda x: follow(*block, visible, unknown, None))(0))


def test_scores_that_leave_the_chip_are_formed_by_tiles() -> None:
    """Whatever the size of the cache: as few slots a tile as their scores leave room for."""
    *block, k, v = given(64)
    visible = jnp.tril(jnp.ones((1, 3, 3), bool))
    reach = jnp.asarray(REACH, jnp.int32)
    run = lambda way, reach: way(*block, visible, cached(k, v, reach), None)
    whole = 4 * len(REACH) * 4 * 3 * 64  # bytes of all scores
    for most, slots in ((whole - 1, 8), (whole - 1, 16), (whole, 64)):
        scores = (most, 4 * 4 * 3 * slots)
        follow = Follow(reference, tile_bytes=1 << 30, sizes=(TILE, 512), scores=scores)
        np.testing.assert_allclose(run(follow, reach), run(reference, reach), atol=2e-6)
        traced = str(jax.make_jaxpr(lambda reach, way=follow: run(way, reach))(reach))
        assert ("while" in traced) == (slots < 64)
        assert (f"f32[1,2,6,{slots}]" in traced) == (slots < 64)
    of_few = Follow(reference, tile_bytes=1, sizes=(48, 512), scores=(0, 1))  # no two tiles
    assert "while" not in str(jax.make_jaxpr(lambda reach: run(of_few, reach))(reach))


def test_on_cpu_few_queries_choose_and_many_do_not() -> None:
    """A tile's size follows from the bytes of a slot; large caches of one shape are all alike."""
    on_cpu = ATTEND.variants["cpu"]
    assert isinstance(on_cpu, Follow)
    assert [on_cpu.cost(n) > 1 for n in (1, 8, 32, 33, 1024)] == [True] * 3 + [False] * 2
    shapes = {width: jnp.zeros((1, 4, 4096, width)) for width in (8, 64, 512)}
    sizes = [on_cpu.tile(cached(x, x, jnp.asarray([9])), 4) for x in shapes.values()]
    assert sizes == [1024, 256, 256]


def test_the_compile_report_counts_the_tiles_of_a_context() -> None:
    reach = jnp.asarray(REACH, jnp.int32)
    text = tiled.lower(*given(56), reach).compile().as_text()
    rows = len(REACH)
    for context, tiles in ((1, 1), (20, 3), (48, 6), (None, 7), (500, 7)):
        module = hlo.parse(text, context=context)
        (loops,) = unknown_loops(module, module.entry)
        assert loops == Loops(1, rows * tiles, "context"), context


def test_the_loop_reads_tiles_of_every_entry_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy of a cache, which a loop inside the loop of cycles and a choice only read."""
    with checks.few_slots_a_tile(monkeypatch, (1, 1), cost=1.5):
        checks.in_place("none", test_families.of_few_layers()[0])


def test_texts_by_tiles_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with checks.few_slots_a_tile(monkeypatch, (4, 4), 1.0):
        checks.greedy_text("qwen3", "dflash", 3)
        checks.stale_memory("lm", *test_families.of_few_layers())
