"""Checks that several tests share. Each passes on code that is right, and says where it is not.

`test_mutants` plants bugs and asserts that a check fails; the programs are looked up in
`specjax.decode` at every call, so that it can put others there.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import AS_USERS_DO
from scipy import stats

import specjax
from specjax import api, decode, session, verify
from specjax.core.cache import Recurrent, caches_in
from specjax.core.compiles import Compiles
from specjax.core.keys import row_keys
from specjax.core.ops import ATTEND
from specjax.core.ops.tiles import Follow
from specjax.drafters import LM, Spec
from specjax.lab.compiler.hlo import count_copies
from specjax.sampling import Options, make_sampling
from specjax.train.objectives.base import Batch
from specjax.train.replay import replay

STEPS = 24


@contextlib.contextmanager
def few_slots_a_tile(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int], cost: float
) -> Iterator[None]:
    """On CPU caches are read by tiles that are so small that those of tests have several."""
    tiled = Follow(ATTEND.reference, tile_bytes=1, sizes=sizes, cost=lambda queries: cost)
    with monkeypatch.context() as m:
        m.setitem(ATTEND.variants, "cpu", tiled)
        jax.clear_caches()
        yield
    jax.clear_caches()


# --- greedy text and the number of cycles ---------------------------------------------------------


def greedy_text(family: str, name: str, *num_drafts: int) -> None:
    """At temperature 0 the text is the target's own, whatever the drafter guesses."""
    target, prompts = tiny.model(family), tiny.prompts(3)
    want = [tiny.greedy_reference(target, p, STEPS) for p in prompts]
    assert len({tuple(w) for w in want}) == 3 and len(set(want[1])) > 4  # the texts do vary
    for num_draft in num_drafts:
        drafter = tiny.make(name, num_draft, target=target)
        out = specjax.generate(target, drafter, prompts, max_new_tokens=STEPS)
        assert out.tokens == want, num_draft


def perfect_draft(kind: str, temperature: float) -> None:
    """A draft that is the target itself is always right: no state of it falls behind."""
    target = tiny.model()
    out = specjax.generate(
        target,
        LM(target, 3, kind),
        tiny.prompts(3),
        max_new_tokens=STEPS,
        temperature=temperature,
        seed=5,
    )
    assert out.tau == 4.0 and out.trace.survival() == [1.0, 1.0, 1.0]
    assert out.trace.num_cycles == 3 * STEPS // 4


# --- path independence ----------------------------------------------------------------------------


def run_cycles(
    target: specjax.Model,
    name: str | Spec,
    cycles: int,
    *,
    temperature: float = 0.8,
    rows: int = 4,
    draft: specjax.Model | None = None,
) -> session.Session:
    requests = [
        session.Row(p, Options(temperature=temperature), seed, 60, ())
        for seed, p in enumerate(tiny.prompts(rows))
    ]
    spec = tiny.make(name, 3, target=target, model=draft) if isinstance(name, str) else name
    s = session.Session(target, spec, requests)
    if cycles:
        s.advance(cycles)
    return s


def fresh_state(
    name: str,
    target: specjax.Model | None = None,
    *,
    noise: float = 0.02,
    tolerance: float = 2e-5,
    law: float = 2e-4,
) -> None:
    """Law 3: after any cycles caches and proposals are those of a replay of the committed text.

    Verification repairs what a drafter proposes, so no test of the text can see this go wrong.
    """
    target, rows = target or tiny.model(), 24
    draft = tiny.near(target, noise) if name == "lm" else None
    done = run_cycles(target, name, 7, rows=rows, draft=draft)
    if draft is not None:  # what it misses depends on whether its last guess was right
        full = [row[-1].accepted == 3 for row in done.trace().rows]
        assert 4 <= sum(full) <= rows - 4, full
    assert (done.state.cache.length == done.state.length - 1).all()
    texts = [r + n for r, n in zip(tiny.prompts(rows), done.new_tokens())]
    requests = [
        session.Row(t, Options(temperature=0.8), seed, 20, ()) for seed, t in enumerate(texts)
    ]
    fresh = session.Session(target, tiny.make(name, 3, target=target, model=draft), requests)

    proposals = []
    propose = jax.jit(lambda drafter, draft, context: drafter.propose(draft, context)[0])
    for s in (done, fresh):
        bound = decode.Bound(target.net, s.state.cache)
        context = decode.Context(
            s.state.tokens, s.state.length, s.request.keys, s.request.sampling, None, bound
        )
        proposals.append(propose(s.drafter, s.state.draft, context))
    assert (proposals[0].tokens == proposals[1].tokens).all()
    if proposals[0].q is not None:
        # The random drafters are sharp: rounding of 1e-6 in a logit is more than that in q.
        np.testing.assert_allclose(proposals[0].q, proposals[1].q, atol=law)

    slots = max(done.num_slots, fresh.num_slots)
    ours, replay = (s.state.cache.grow(slots).stale() for s in (done, fresh))  # the rest alike
    for a, b in zip(jax.tree.leaves(ours.layers), jax.tree.leaves(replay.layers), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=tolerance)


def stale_memory(
    name: str, target: specjax.Model | None = None, draft: specjax.Model | None = None
) -> None:
    """Poison in all that must not be seen, before every cycle, changes no token of a text."""
    target = target or tiny.model()
    clean, dirty = (run_cycles(target, name, 0, draft=draft) for _ in range(2))

    def is_cache(x: object) -> bool:
        return isinstance(x, decode.Cache)

    for _ in range(12):
        dirty.state = jax.tree.map(
            lambda x: x.stale() if is_cache(x) else x, dirty.state, is_leaf=is_cache
        )
        clean.advance(1)
        dirty.advance(1)
        assert clean.new_tokens() == dirty.new_tokens()
    assert clean.trace() == dirty.trace()


def in_place(
    name: str, target: specjax.Model | None = None, draft: specjax.Model | None = None
) -> None:
    """The program that users run: state donated, and no copy of any entry's arrays in it."""
    target = target or tiny.model()
    s = run_cycles(target, name, 1, draft=draft)
    old = jax.tree.leaves(s.state.cache)[0]
    args = (target.net, s.drafter, s.rule, s.request, s.state, jnp.int32(4))
    compiled = decode.run_program.lower(*args).compile(compiler_options=AS_USERS_DO)
    text = compiled.as_text()
    caches = caches_in(s.state)
    entries = [e for c in caches for e in c.layers]
    # The last inputs of a convolution are three tokens, all of them new in every cycle.
    few = {e.window.shape for e in entries if isinstance(e, Recurrent)}
    for shape in {x.shape for x in jax.tree.leaves(entries)} - few:
        assert count_copies(text, shape) == (0, 0), shape
    assert text.count(" while(") >= 1 and "input_output_alias" in text
    cache_bytes = sum(c.num_bytes for c in caches)
    assert compiled.memory_analysis().temp_size_in_bytes < cache_bytes + 200_000
    compiled(target.net, s.drafter, s.request, s.state, jnp.int32(1))
    assert old.is_deleted()


def another_turn(name: str, bound_to: tuple[specjax.Model, Any] | None = None) -> None:
    """A prefill after cycles is as good as one of the whole text, wherever each row leaves its own.

    Another one of the kind compiles nothing. ``bound_to``: a target and a drafter of one's own.
    """
    target, rows, rng = tiny.model(), 24, np.random.default_rng(3)
    spec = tiny.make(name, 3, target=target, model=tiny.near(target) if name == "lm" else None)
    target, spec = bound_to or (target, spec)
    s = run_cycles(target, spec, 7, rows=rows)
    start = [session.Row(p, Options(temperature=0.8), 0, 60, ()) for p in tiny.prompts(rows)]
    asked, compiles = start, Compiles()
    for _ in range(3):
        texts = [[*r.prompt, *n] for r, n in zip(asked, s.new_tokens())]
        # Row 0 goes on, row 1 ends before, row 2 has nothing in common; the rest leaves anywhere.
        same = [len(texts[0]), len(texts[1]) - 4, 0]
        same += [int(rng.integers(1, len(t) + 1)) for t in texts[3:]]
        prompts = [t[:n] + [([*t, 0])[n] + 1] + [7, 8] * 2 for t, n in zip(texts, same)]
        prompts[1], prompts[2] = prompts[1][: same[1]], prompts[2][:1]
        prompts = [[token % 31 for token in p] for p in prompts]
        asked = [session.Row(p, Options(temperature=0.8), i, 30, ()) for i, p in enumerate(prompts)]
        before, compiles = s.num_slots, Compiles()
        assert s.turn(asked)
        most = [max(min(n - 1, len(p) - 2), 0) for n, p in zip(same, prompts)]
        # A drafter may have to hear the last block again.
        assert all(m - 5 <= kept <= m for m, kept in zip(most, s.kept)), (most, s.kept)
        s.advance(3)
    assert compiles.count == 0 and s.num_slots == before
    fresh = session.Session(target, spec, asked)
    fresh.advance(3)
    same_cycles(s, fresh)


def same_cycles(one: session.Session, other: session.Session) -> None:
    """Both guess, accept and commit the same from here on, a few cycles long."""
    strip = lambda cycle: (cycle.proposed, cycle.accepted, cycle.emitted)
    assert (one.state.cache.length == other.state.cache.length).all()
    for s in (one, other):
        s.advance(4)
    assert one.new_tokens() == other.new_tokens()
    for a, b in zip(one.trace().rows, other.trace().rows, strict=True):
        assert len(a) and [strip(c) for c in a] == [strip(c) for c in b]


# --- the law of whole texts -----------------------------------------------------------------------

VOCAB, FIRST, NEW, NUM_DRAFT, HEAT = 4, 2, 5, 2, 1.3
TEXTS = 24_000
ALPHA = 1e-4
# What this detects. With 24000 texts and about 190 cells, the statistic leaves its 1 - 1e-4
# quantile in every second run when the sum of (got - want)^2 / want over the cells' probabilities
# is 0.003: when each text is 5.5% too likely or too rare, or when 1.7% of all texts moved to or
# from one cell of probability 0.1. Seeds are fixed, so the verdict is the same in every run.


def law_target() -> specjax.Model:
    return tiny.model("llama", seed=2, vocab=VOCAB, layers=1, sharp=1.5)


def law_draft(seed: int = 4) -> specjax.Model:
    return tiny.model("qwen3", seed=seed, vocab=VOCAB, layers=1, sharp=3.0)


@functools.cache
def chance_of_texts() -> np.ndarray:
    """The target's probability of each text of `NEW` tokens, by enumeration: [V ** NEW]."""
    texts = np.stack(np.unravel_index(np.arange(VOCAB**NEW), (VOCAB,) * NEW), -1)
    fed = np.pad(texts, ((0, 0), (1, 0)), constant_values=FIRST)
    scores = tiny.full_logits(law_target(), fed)[:, :-1].astype(np.float64) / HEAT
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return np.take_along_axis(p, texts[..., None], -1)[..., 0].prod(1)


def many_texts(drafter: Any, rule: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """New tokens [rows, NEW] of one batch of equal prompts, and the cycles of each [rows]."""
    target = law_target()
    slots = 1 + NEW + drafter.num_draft + 1
    request = decode.Request(
        keys=row_keys(jnp.arange(rows, dtype=jnp.uint32)),
        limit=jnp.full((rows,), 1 + NEW, jnp.int32),
        stop_ids=jnp.full((rows, 1), -1, jnp.int32),
        sampling=jax.tree.map(
            lambda x: jnp.tile(x, rows), make_sampling([Options(temperature=HEAT)], VOCAB)
        ),
    )
    state = decode.init_program(
        target.net,
        drafter,
        jnp.zeros((rows, slots), jnp.int32).at[:, 0].set(FIRST),
        jnp.ones((rows,), jnp.int32),
        jnp.zeros((rows,), jnp.bool_),
        None,
    )
    state = decode.run_program(
        target.net, drafter, verify.get(rule), request, state, jnp.int32(NEW + 1)
    )
    assert bool(state.done.all())
    return np.asarray(state.tokens)[:, 1 : 1 + NEW], np.asarray(state.record.committed > 0).sum(1)


def law_of_texts(drafter: Any, rule: str, rows: int = TEXTS) -> np.ndarray:
    """Chi-square of whole texts, several cycles long, against the target's exact law; the texts."""
    texts, cycles = many_texts(drafter, rule, rows)
    assert len(np.unique(cycles)) > 1 or drafter.num_draft == 0  # texts differ in where they broke
    want = rows * chance_of_texts()
    got = np.bincount(texts @ VOCAB ** np.arange(NEW)[::-1], minlength=VOCAB**NEW)
    rare = want < 10
    want, got = np.append(want[~rare], want[rare].sum()), np.append(got[~rare], got[rare].sum())
    statistic = ((got - want) ** 2 / want).sum()
    assert statistic < stats.chi2.isf(ALPHA, len(want) - 1), (statistic, len(want) - 1)
    return texts


def predicted_cycles(
    target: specjax.Model, spec: Any, objective: Any, params: Any, *, new: int = 40, vocab: int = 31
) -> tuple[np.ndarray, api.Output]:
    """An objective's `matches` over the target's greedy texts gives every cycle of speculation.

    Returns:
      [B, T, K] bool, and what was generated.
    """
    prompts = tiny.prompts(4, vocab)
    out = specjax.generate(target, spec, prompts, max_new_tokens=new)
    texts = [p + t for p, t in zip(prompts, out.tokens)]
    lengths = np.array([len(t) for t in texts])
    tokens = jnp.asarray([t + [0] * (max(lengths) - len(t)) for t in texts], jnp.int32)
    batch = Batch(tokens, jnp.ones_like(tokens, jnp.bool_), jnp.asarray(lengths))
    matches = np.asarray(jax.jit(objective.matches)(params, batch, target.net))
    guessed = replay(matches, np.array([len(p) for p in prompts]), lengths)
    assert guessed.committed == 4 * new and guessed.cycles == out.trace.num_cycles
    return matches, out


def accepted_as_predicted(matches: np.ndarray, out: api.Output) -> None:
    """In every cycle as many guesses as `predicted_cycles` found."""
    for b, cycles in enumerate(out.trace.rows):
        for c in cycles:
            # Of a cycle that the end of the text cuts, what was written is known to be right.
            known = min(c.accepted, len(c.emitted))
            assert known == np.cumprod(matches[b, c.position - 1])[: known + 1].sum()
