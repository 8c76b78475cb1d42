"""Every registered drafter on every registered family: the target's own text, or a refusal.

    python -m pytest -n 0 tests/long/test_family_matrix.py              # 20 minutes
    python -m pytest -n 0 tests/long/test_family_matrix.py -k gpt_oss   # a part of it

What is done is kept in build/family_matrix.jsonl and not done again, unless a source changed. The
tables are in build/family_matrix.md; docs/long_tests.md has the last ones. New drafters and
families are in by being registered.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import checks
import matrix
import tiny
from checks import STEPS
from matrix import Cell
from test_families import PUBLISHED, WARM, plain_texts

import specjax
from specjax import drafters, session
from specjax.core.cache import Cache
from specjax.core.quantised import Quantised
from specjax.drafters import LM
from specjax.drafters.checking import bind
from specjax.lab.audit import audit
from specjax.sampling import Options
from specjax.train.drafter import Trainee
from specjax.train.objectives.base import Batch
from specjax.train.optimizer import make_optimizer, schedule
from specjax.train.state import init_state
from specjax.train.step import make_step

DRAFTERS = list(drafters.DRAFTERS)
K, TRAINED = 3, 8
UNTRAINED = ("medusa_tree",)  # it takes the heads of "medusa"

# Kept in fewer bits, with some of the drafters: caches of random models, and what tiny checkpoints
# with reference outputs have packed.
CACHES = {
    f"{family}, cache in {kind}": (family, kind)
    for family, kind in (("qwen3", "int8"), ("gpt_oss", "fp8"), ("qwen3_5_moe_text", "int8"))
}
PACKED = {
    "gpt_oss, MXFP4": "gpt-oss",
    "deepseek_v3, FP8": "deepseek-v3-fp8",
    "kimi_k25, int4": "kimi-k25",
}
SAMPLE = ("none", "ngram", "lm", "dflash", "eagle3", "medusa_tree", "mtp")
FEWER_BITS = [*CACHES, *PACKED]
CELLS = [(f, n) for f in PUBLISHED for n in DRAFTERS] + [(f, n) for f in FEWER_BITS for n in SAMPLE]


@pytest.fixture(scope="module", autouse=True)
def tables() -> Iterator[None]:
    """Written whatever happens: they hold what is done."""
    yield
    matrix.write([*PUBLISHED, *FEWER_BITS], DRAFTERS)


@pytest.fixture(scope="module")
def seen() -> list[str]:
    """The family of the last test, if any."""
    return []


@pytest.fixture(autouse=True)
def one_family_at_a_time(seen: list[str], family: str) -> None:
    """What was compiled for another one is dropped: 130 cells of it are gigabytes."""
    if seen and seen[-1] != family:
        jax.clear_caches()
    seen.append(family)


@functools.cache
def target_of(family: str, shared: Path) -> specjax.Model:
    if family in CACHES:
        whole, kind = CACHES[family]
        return tiny.model(whole).remembering(kind)  # type: ignore[arg-type]
    if family in PACKED:
        target = specjax.load(shared / "parity" / PACKED[family], weights="packed", dtype="float32")
        held = jax.tree.leaves(target.net.params, is_leaf=lambda x: isinstance(x, Quantised))
        assert any(isinstance(x, Quantised) for x in held)
        # Its limit is of 256 tokens: positions are what they are behind it, too.
        longer = dataclasses.replace(target.config, max_position_embeddings=2048)
        return dataclasses.replace(target, net=dataclasses.replace(target.net, config=longer))
    return tiny.model(family)


def near(family: str, target: specjax.Model, shared: Path) -> specjax.Model:
    """A draft that often guesses as the target does, in as many bits as usual."""
    if family in PACKED:
        target = specjax.load(shared / "parity" / PACKED[family], dtype="float32")
    return tiny.near(target.remembering(None))


def made(family: str, name: str, target: specjax.Model, shared: Path) -> Any:
    """The drafter with random weights; of a model one that often guesses as the target does."""
    if name == "none":
        return drafters.NoDraft()
    if name == "lm":
        return LM(near(family, target, shared), K)
    return tiny.make(name, K, target=target)


def poisoned_texts(target: specjax.Model, spec: Any) -> list[list[int]]:
    """With the worst in all memory that must not be seen, before every cycle."""
    temperatures, seeds = WARM["temperature"], WARM["seed"]
    rows = [
        session.Row(p, Options(temperature=t), s, STEPS, ())
        for p, t, s in zip(tiny.prompts(4), temperatures, seeds, strict=True)
    ]
    run = session.Session(target, spec, rows, rule="coupled")
    is_cache = lambda x: isinstance(x, Cache)
    while not run.done.all():
        poison = lambda x: x.stale() if is_cache(x) else x
        run.state = jax.tree.map(poison, run.state, is_leaf=is_cache)
        run.advance(1)
    return run.new_tokens()


def losses(name: str, target: specjax.Model) -> tuple[float, float] | None:
    """Before and after a few steps on the target's own text; None: it is not trained."""
    entry = drafters.DRAFTERS[name]
    if (entry.fresh is None and name != "lm") or name in UNTRAINED:
        return None
    fresh = None if entry.fresh is None else entry.fresh(target, num_draft=K, seed=3)
    spec = LM(tiny.near(target, 0.3), K) if fresh is None else fresh
    trainee, params = Trainee.of(name, spec, {}, num_draft=K, compute_dtype=jnp.float32)
    rate = schedule(peak_lr=3e-3, warmup_steps=1, steps=10 * TRAINED)
    optimizer = make_optimizer("adamw", rate, weight_decay=0.0, clip_norm=1.0)
    step, state = make_step(trainee.objective, optimizer), init_state(params, optimizer)
    texts = [p + t for p, t in zip(tiny.prompts(4), plain_texts(target), strict=True)]
    tokens = np.zeros((1, 4, 64), np.int32)
    for row, text in zip(tokens[0], texts, strict=True):
        row[: len(text)] = text
    lengths = jnp.asarray([[len(text) for text in texts]], jnp.int32)
    batch = Batch(jnp.asarray(tokens), jnp.ones(tokens.shape, bool), lengths)
    found = []
    for _ in range(TRAINED):
        state, sums = step(state, batch, target.net)
        found.append(float(sums["loss"] / sums["weight"]))
        assert math.isfinite(found[-1]), found
    assert found[-1] < found[0], found
    return found[0], found[-1]


@pytest.mark.parametrize("family,name", CELLS)
def test_text_is_the_targets_own_or_it_is_refused(family: str, name: str, shared: Path) -> None:
    if (family, name) in matrix.known():
        return
    target = target_of(family, shared)
    try:
        spec = made(family, name, target, shared)
        bind(spec, target, "one_hot")
    except ValueError as error:  # before anything ran
        assert "\n" not in str(error) and len(str(error)) < 400
        matrix.keep(Cell(family, name, refused=str(error)))
        return
    want = plain_texts(target)  # greedy rows are held to passes without a cache
    out = specjax.generate(target, spec, tiny.prompts(4), max_new_tokens=STEPS, **WARM)
    assert out.tokens == want
    assert poisoned_texts(target, spec) == want
    # A draft of its own that is nearly right is another check; one step of a cache in 8 bits is
    # more than a tolerance.
    if name not in ("none", "lm") and family not in CACHES:
        checks.fresh_state(name, target, tolerance=2e-4, law=2e-3)
    loss = None if family in FEWER_BITS else losses(name, target)
    matrix.keep(Cell(family, name, tau=float(out.tau), loss=loss))


@pytest.mark.parametrize("family", [*PUBLISHED, *FEWER_BITS])
def test_a_family_passes_its_audit(family: str, shared: Path) -> None:
    """Every layer's memory under any counts and paths, poisoned, and in blocks of other widths."""
    target = target_of(family, shared)
    report = audit(target=target, checks=["entries", "stale", "widths"])
    assert report.passed, str(report)
