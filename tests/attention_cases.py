"""Attention's arguments in all their kinds, and what a kernel of our own makes of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core import trees
from specjax.core.ops import Cached
from specjax.core.ops.attend import reference
from specjax.core.ops.valid_slots import ValidSlots, unfit
from specjax.core.quantised import Quantisation, Quantised, quantise
from specjax.core.view import causal

# Largest difference, where values are drawn from a normal law: float32 sums in another order;
# bfloat16 rounds weights and results, of which the reference rounds other ones.
CLOSE = {"float32": 2e-6, "bfloat16": 2e-2}


@dataclasses.dataclass(frozen=True)
class Case:
    """What is attended to: R rows of caches with room for S tokens, in which ``reach`` are."""

    name: str
    reach: tuple[int, ...] = (37, 0, 90)
    heads: int = 4
    groups: int = 2
    tokens: int = 3
    before: int = 0  # tokens of the block that were fed earlier
    slots: int = 90
    width: int | tuple[int, ...] = 64  # of keys; of their parts
    value_width: int = 64
    block: str = "causal"  # or "whole", "tree", "rows": another mask a row
    seen: str = "filled"  # or "window": other slots a token; "holes": not all of a row's
    sinks: bool = False
    scale: float | None = None
    kind: Quantisation | None = None

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("grouped"),
    Case("one token", tokens=1, heads=6),
    Case("one head", heads=1, groups=1, tokens=1),
    Case("one row of many slots", reach=(700,), slots=1024, tokens=1),
    Case("many programs and no shares", reach=(90, 1) * 40, tokens=1, slots=96),
    Case("many queries", tokens=70, heads=8, groups=1, slots=90),
    Case("tokens before", before=4),
    Case("a long block", reach=(3,), tokens=5, before=70),
    Case("whole block", block="whole"),
    Case("tree", tokens=6, block="tree"),
    Case("another mask a row", block="rows"),
    Case("window", seen="window"),
    Case("holes", seen="holes"),
    Case("sinks", sinks=True),
    Case("sinks and shares", reach=(700,), slots=1024, sinks=True, scale=0.3),
    Case("scale", scale=0.5),
    Case("nothing remembered", reach=(0, 0)),
    *(Case(f"width {n}", width=n, value_width=n) for n in (16, 80, 96, 128, 256)),
    Case("narrow values", width=192, value_width=128),
    Case("latent", heads=20, groups=1, width=(32, 128), value_width=128),
    Case("wide latent", heads=20, groups=1, width=(64, 512), value_width=512),
    Case("int8", kind="int8"),
    Case("fp8", kind="fp8"),
    Case("fp8, padded width, sinks", kind="fp8", width=80, value_width=80, sinks=True),
)


def arguments(case: Case, dtype: Any, seed: int = 0) -> tuple[Any, ...]:
    """What `attend` takes, beside its platform."""
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), dtype)

    rows, block = len(case.reach), case.before + case.tokens
    widths = case.width if isinstance(case.width, tuple) else (case.width,)
    q, k, old = (
        tuple(drawn(rows, n, t, w) for w in widths)
        for n, t in ((case.heads, case.tokens), (case.groups, block), (case.groups, case.slots))
    )
    v, old_v = (drawn(rows, case.groups, t, case.value_width) for t in (block, case.slots))
    if len(widths) > 1:  # compressed vectors are a part of the keys as well
        k, old = (*k[:-1], v), (*old[:-1], old_v)
    one = lambda parts: parts if len(parts) > 1 else parts[0]
    kept = tuple(map(one, (k, v, old, old_v))) if len(widths) > 1 else (k[0], v, old[0], old_v)
    if case.kind is not None:
        kept = tuple(quantise(x, case.kind) for x in kept)
    k, v, old, old_v = kept
    reach = jnp.asarray(case.reach, jnp.int32)
    sinks = drawn(case.heads) if case.sinks else None
    cached = Cached(old, old_v, _seen(case, reach, rng), reach)
    return one(q), k, v, _visible(case, rng), cached, case.scale, sinks


def _seen(case: Case, reach: jax.Array, rng: np.random.Generator) -> jax.Array:
    slot = jnp.arange(case.slots)
    filled = (slot[None, :] < reach[:, None])[:, None]
    if case.seen == "window":
        return filled & (
            slot[None, None] > reach[:, None, None] - 20 + jnp.arange(case.tokens)[None, :, None]
        )
    return filled & jnp.asarray(rng.random(filled.shape) < 0.5) if case.seen == "holes" else filled


def _visible(case: Case, rng: np.random.Generator) -> jax.Array:
    if case.block == "tree":
        return trees.ancestors((0, 0, 1, 1, 3))[None]
    if case.block == "whole":
        return jnp.ones((1, case.tokens, case.before + case.tokens), bool)
    seen = causal(case.tokens, case.before)
    if case.block == "rows":
        drawn = rng.random((len(case.reach), *seen.shape[1:])) < 0.5
        seen = jnp.asarray(drawn) | jnp.eye(case.tokens, dtype=bool)[None]
    return seen


def poisoned(cached: Cached) -> Cached:
    """NaN in every slot that no text reaches: of keys and values, or of their factors."""
    assert cached.reach is not None
    empty = jnp.arange(cached.seen.shape[-1])[None, :] >= cached.reach[:, None]

    def one(x: Any) -> Any:
        if isinstance(x, Quantised):
            return dataclasses.replace(x, factors=one(x.factors))
        return jnp.where(empty[:, None, :, None], jnp.asarray(jnp.nan, x.dtype), x)

    known = lambda x: isinstance(x, Quantised)
    keys, values = jax.tree.map(one, (cached.keys, cached.values), is_leaf=known)
    return cached._replace(keys=keys, values=values)


def check(case: Case, dtype: Any) -> None:
    """The kernel, interpreted, gives what the reference does, and reads nothing behind a text."""
    q, k, v, visible, cached, scale, sinks = given = arguments(case, dtype)
    assert unfit(q, k, v, cached) is None
    kernel = ValidSlots(_refused, interpret=True)
    want = jax.jit(lambda: reference(*given))()
    got = jax.jit(lambda: kernel(q, k, v, visible, poisoned(cached), scale, sinks))()
    assert got.shape == want.shape and got.dtype == want.dtype == dtype
    close = CLOSE[jnp.dtype(dtype).name]
    np.testing.assert_allclose(
        got.astype(jnp.float32), want.astype(jnp.float32), rtol=close, atol=close, err_msg=str(case)
    )


def _refused(*given: Any) -> Any:
    raise AssertionError("the kernel was not asked")
