"""Operations as platforms write them: what their references compute, chosen by a static value."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import specjax
from specjax import decode, drafters, session
from specjax.core.ops import OPS, Cached, Seen, Stack, attend, blocks, blocks_by_tiles
from specjax.core.platform import Platform
from specjax.core.quantised import Quantised
from specjax.session import requests
from specjax.session.layout import Layout

ROOT = Path(specjax.__file__).parent
ROWS, HEADS, GROUPS, TOKENS, SLOTS, WIDTH = 2, 4, 2, 3, 16, 8
FLOATS = (jnp.float32, jnp.bfloat16)
# Kernels of our own that run on GPUs alone are interpreted elsewhere (test_flash, test_products).
VARIANTS = [(name, on) for name, op in OPS.items() for on in op.variants if on != "gpu:pallas"]


def drawn(seed: int, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def attention(parts: int, cached: bool, tokens: int = TOKENS) -> tuple[Any, ...]:
    """Of queries and keys in so many parts."""

    def several(seed: int, *shape: int) -> Any:
        made = tuple(drawn(seed + i, ROWS, *shape, WIDTH) for i in range(parts))
        return made if parts > 1 else made[0]

    seen = jnp.arange(SLOTS)[None, None] < jnp.asarray([5, 9])[:, None, None]
    before = Cached(several(4, GROUPS, SLOTS), drawn(6, ROWS, GROUPS, SLOTS, WIDTH), seen)
    visible = jnp.tril(jnp.ones((1, tokens, tokens), bool))
    new = (
        several(0, HEADS, tokens),
        several(2, GROUPS, tokens),
        drawn(7, ROWS, GROUPS, tokens, WIDTH),
    )
    return *new, visible, before if cached else None, None


def some_blocks(dtype: Any, passes: int = 1, size: int = TOKENS) -> tuple[Any, ...]:
    """Blocks over a text: some slots see none of it, if anything else, or not its beginning."""
    slots = 4 * size
    end = jnp.repeat(jnp.asarray([[0, 3, 9, 16], [2, 5, 5, 11]]), size, axis=1)
    end = end if passes else jnp.maximum(end, 1)
    begin = jnp.maximum(end - jnp.arange(slots)[None] % size - 4, 0)
    of = lambda seed, *shape: drawn(seed, ROWS, *shape, WIDTH, dtype=dtype)
    seen = Seen(begin, end, jnp.tril(jnp.ones((size, size), bool)))
    pair = lambda seed, num: (of(seed, GROUPS, num), of(seed + 1, GROUPS, num))
    own = tuple(pair(10 + 2 * i, slots) for i in range(passes))
    how = (0.3, drawn(9, HEADS)) if size == 1 else (None, None)
    return of(0, HEADS, slots), own, pair(3, SLOTS), seen, *how


def arguments(name: str) -> Iterator[tuple[Any, ...]]:
    """What an operation is called with: all that its variants tell apart."""
    for dtype in (jnp.float32, jnp.bfloat16):
        for rows in (1, 3, 20):
            x, w, g = drawn(0, rows, 8), drawn(1, 6, 8), drawn(2, rows, 6)
            x, w, g = (y.astype(dtype) for y in (x, w, g))
            if name in ("product", "weight gradient", "sum over mesh"):
                yield {"product": (x, w), "weight gradient": (x, g)}.get(name, (x, w, None))
        if name == "lookup":
            yield drawn(0, 9, 4, dtype=dtype), jnp.asarray([[3, 8, 3]]), jnp.dtype(jnp.float32)
    if name == "grouped product":
        rng = np.random.default_rng(1)
        whole = lambda *shape: jnp.asarray(rng.integers(-8, 8, shape), jnp.int8)
        for dtype, rows in itertools.product(FLOATS, (1, 3, 20)):
            x = drawn(0, rows, 64, dtype=dtype) / 16
            values, factors = whole(6, 64), jnp.abs(drawn(2, 6, 2)) / 8
            yield x, Quantised(values.astype(jnp.int4), factors, dtype, whole(6, 2)), None
            exponents = factors.astype(jnp.float8_e8m0fnu)
            yield x, Quantised(values.astype(jnp.float4_e2m1fn), exponents, dtype), None
    if name == "argmax":
        yield (jnp.asarray(np.round(drawn(0, 4, 3, 50))),)  # of several largest the first
        yield (jnp.full((2, 7), -jnp.inf),)
    if name == "attend":
        yield from (attention(1, False), attention(1, True), attention(2, True))
        yield attention(1, True, tokens=1)
    if name == "attend blocks":
        for dtype, (passes, size) in itertools.product(FLOATS, ((1, TOKENS), (0, 1), (2, 1))):
            yield some_blocks(dtype, passes, size)
    if name == "apart":
        yield from ((drawn(0, 2, 3, dtype=dtype),) for dtype in FLOATS)
    if name == "per head":
        for dtype in FLOATS:
            x, w = drawn(0, 2, 3, 4, 5, dtype=dtype), drawn(1, 3, 5, 6, dtype=dtype)
            yield from ((x, w, False), (x, w.swapaxes(1, 2), True))
    if name == "experts":
        for tokens in (1, 3, 40):  # few read each expert once, many their own rows
            chosen = np.argsort(np.random.default_rng(5).normal(size=(tokens, 6)))[:, :2]
            wide = 16 if tokens == 3 else 8  # so wide a TPU turns matrices
            stack = Stack(drawn(2, 6, 5, wide), drawn(3, 6, 5, wide), drawn(4, 6, wide, 5))
            assert stack.as_it_lies().turned == (tokens == 3)
            biased = dataclasses.replace(stack, gate_bias=drawn(6, 6, 5), up_bias=drawn(7, 6, 5))
            given = drawn(0, tokens, wide), jnp.asarray(chosen, jnp.int32), drawn(1, tokens, 2)
            yield from ((*given, stack, None), (*given, biased, None))
            # Of experts on another device.
            yield given[0], given[1] - 3, given[2], stack, None
    if name == "write":
        for rows in (2, 9):
            start = jnp.arange(rows) % (SLOTS - TOKENS)
            yield drawn(0, rows, GROUPS, SLOTS, WIDTH), drawn(1, rows, GROUPS, TOKENS, WIDTH), start


# A kernel for a GPU runs as an XLA program here.
HERE = {("attend blocks", "gpu"): functools.partial(blocks.in_kernels, interpret=True)}


@functools.cache
def reference(name: str) -> tuple[list[tuple[Any, ...]], list[list[jax.Array]]]:
    """What an operation is called with, and what its reference gives: for all of its variants."""
    calls = list(arguments(name))
    return calls, values(OPS[name].reference, calls)


def values(function: Any, calls: list[tuple[Any, ...]]) -> list[list[jax.Array]]:
    return jax.jit(lambda: [with_gradients(function, args) for args in calls])()


@pytest.mark.parametrize("name,on", VARIANTS, ids=[f"{name}, {on}" for name, on in VARIANTS])
def test_a_variant_gives_what_its_reference_does(name: str, on: str) -> None:
    """Also one for a device that is not here: in values, and in gradients where there are any."""
    calls, wanted = reference(name)
    assert calls
    found = values(HERE.get((name, on), OPS[name].variants[on]), calls)
    for args, wants, gots in zip(calls, wanted, found, strict=True):
        coarse = any(getattr(x, "dtype", None) == jnp.bfloat16 for x in jax.tree.leaves(args))
        close = {"rtol": 2**-6, "atol": 2**-4} if coarse else {"rtol": 1e-5, "atol": 1e-5}
        assert gots[0].shape == wants[0].shape
        for got, want in zip(gots, wants, strict=True):
            np.testing.assert_allclose(got.astype(jnp.float32), want.astype(jnp.float32), **close)


@pytest.mark.parametrize("passes,size", [(1, TOKENS), (0, 1), (3, 1)])
def test_blocks_are_attended_to_some_at_a_time(passes: int, size: int) -> None:
    """Of several tiles the last has fewer blocks, and fewer tokens of the text."""
    given = some_blocks(jnp.float32, passes, size)
    want = jax.jit(lambda: with_gradients(blocks.reference, given))()
    side = 3 if size == 1 else 9
    cut = blocks_by_tiles._Cut.of(given[0], given[2][0], given[3], side)
    assert (cut.num, cut.each) == (2, 2) and cut.parts > 1
    for follows in (True, False):
        variant = blocks_by_tiles.ByTiles(follows, side)
        got = jax.jit(lambda variant=variant: with_gradients(variant, given))()
        for one, other in zip(got, want, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def with_gradients(function: Any, args: tuple[Any, ...]) -> list[jax.Array]:
    """What it returns, and of its squares the gradients by all arguments that are floats."""
    leaves, structure = jax.tree.flatten(args)
    floats = [i for i, x in enumerate(leaves) if getattr(x, "dtype", None) in FLOATS]

    def total(given: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        filled = list(leaves)
        for i, x in zip(floats, given, strict=True):
            filled[i] = x
        out = function(*jax.tree.unflatten(structure, filled))
        return (out.astype(jnp.float32) ** 2).sum(), out

    (_, out), gradients = jax.value_and_grad(total, has_aux=True)([leaves[i] for i in floats])
    return [out, *gradients]


@pytest.mark.parametrize("cached", [True, False])
def test_on_a_gpu_queries_stand_behind_a_barrier(cached: bool) -> None:
    """Where there is a cache, so that its keys and the block's are not put together."""
    *given, scale = attention(1, cached)

    def traced(name: str) -> str:
        run = lambda q: attend(q, *given[1:], scale=scale, platform=Platform(name))
        return str(jax.make_jaxpr(run)(given[0]))

    assert ("optimization_barrier" in traced("gpu")) == cached
    assert "optimization_barrier" not in traced("cpu")


def test_a_program_for_another_platform_leaves_nothing_behind() -> None:
    """What a TPU's compiler is told goes with a network that was bound for one, and no further."""
    target, prompts = tiny.model(), tiny.prompts(1)
    rows = [session.Row(p, specjax.Options(), 0, 2, ()) for p in prompts]
    decode.run_program._jitted.clear()  # as in a process that has run nothing yet
    tpu = dataclasses.replace(target, net=target.net.on(Platform("tpu", 2)))
    drafter, rule = requests.choose(tpu, drafters.make("ngram", num_draft=3), rows, None)
    layout = Layout.of(rows, 31, greedy=True, platform=tpu.net.platform)
    state = jax.eval_shape(
        lambda *args: decode.init_state(*args, None), tpu.net, drafter, *layout.prompts(32)[:3]
    )
    args = (tpu.net, drafter, rule, layout.request, state, jnp.int32(1))
    lowered = decode.run_program.lower(*args)
    assert "optimization_barrier" in lowered.as_text()  # scores that are formed twice
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_tpu"):
        lowered.compile()
    text = specjax.generate(target, None, prompts, max_new_tokens=2).tokens
    assert text == [tiny.greedy_reference(target, p, 2) for p in prompts]


def test_platforms_are_told_apart_in_one_place() -> None:
    """Models, drafters and entries say what is computed, `core.ops` how a device does it best."""
    tricks = ("optimization_barrier", "platform_dependent", "ContextVar", "minimum(count, 0)")
    rooms = ("models", "drafters", "verify", "core")
    files = [ROOT / "decode.py", *(f for room in rooms for f in (ROOT / room).rglob("*.py"))]
    ours = [f for f in files if f.parent != ROOT / "core" / "ops"]
    assert len(ours) > 80
    found = {f"{f.name}: {t}" for f in ours for t in tricks if t in f.read_text()}
    assert not found
    asks = {f.name for f in ours if "default_backend() ==" in f.read_text()}
    assert not asks


def test_on_a_gpu_large_products_of_one_input_stay_apart() -> None:
    """Of a recurrent layer: merged, its weights would be put together in every pass."""
    target = tiny.model("qwen3_5")
    entries = target.net.init_cache(1, 8).layers
    recurrent = sum(type(entry).__name__ == "Recurrent" for entry in entries)
    net, tokens = target.net.on(Platform("gpu")), jnp.zeros((1, 4), jnp.int32)
    traced = str(jax.make_jaxpr(lambda tokens: net(tokens).hidden)(tokens))
    assert traced.count("optimization_barrier") == 2 * recurrent > 0
