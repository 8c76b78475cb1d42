"""Guesses that are not worth verifying: the text's law does not change, and time is saved."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import checks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import AS_USERS_DO, thinned

import specjax
from specjax import decode, session, verify
from specjax.core.cache import caches_in
from specjax.drafters import LM
from specjax.drafters.base import doubling_widths
from specjax.lab.audit.tables import all_blocks, along, chance, deviation, evaluate, suitable
from specjax.lab.compiler.hlo import count_copies
from specjax.lab.costs.calibration import Calibration
from specjax.lab.costs.explain_run import explain_trace
from specjax.sampling import Options

V, K = 3, 3


def cut(blocks: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """No guess from the first one on that is not ``worth`` [D, K] verifying."""
    return np.where(worth.cumprod(1).astype(bool), blocks, -1)


@pytest.mark.parametrize("name", ["token", "block", "coupled"])
def test_a_length_that_does_not_know_the_guess_is_exact(name: str) -> None:
    """All blocks, the length decided by each guess's law and the guesses before: to 1e-12."""
    rule, blocks, shortened, biased = verify.get(name), all_blocks(V, K), 0, 0.0
    for case, (p, q) in suitable(rule, V, K).items():
        weights, laws = chance(q, blocks), along(q, blocks, K)  # [D, K, V]
        short = cut(blocks, laws.max(-1) >= 0.55)
        shortened += int((short < 0).any())
        error = deviation(p, short, weights, *evaluate(rule, p, short, q)).size
        assert error < 1e-12, case
        # What must never be done: to drop a guess for its own probability.
        own = np.take_along_axis(laws, blocks[..., None], -1)[..., 0]
        wrong = cut(blocks, own >= 0.55)
        biased = max(biased, deviation(p, wrong, weights, *evaluate(rule, p, wrong, q)).size)
    assert shortened >= 2 and biased > 0.01


@pytest.mark.parametrize("rule", ["token", "block"])
def test_texts_follow_the_targets_law(rule: str) -> None:
    """Whole texts, several cycles long, as the decode loop writes them."""
    spec = LM(checks.law_draft(), 2, min_confidence=0.9)
    drafter = spec.bind(checks.law_target(), "sampled")
    texts = checks.law_of_texts(drafter, rule, 12_000)[:64]
    fixed = LM(checks.law_draft(), 2).bind(checks.law_target(), "sampled")
    assert (checks.many_texts(fixed, rule, 64)[0] != texts).any()  # it did shorten some


def specs(least: float | None) -> dict[str, Any]:
    target = tiny.model()
    spark = tiny.fresh("dspark", 5, target)
    return {
        "lm": LM(tiny.near(target), 5, min_confidence=least),
        "dspark": dataclasses.replace(spark, min_confidence=least),
    }


CASES = ["lm greedy", "lm coupled", "dspark greedy", "dspark coupled"]


# How sure DSpark is does not depend on how it guesses.
@pytest.mark.parametrize("case", thinned(CASES, "dspark greedy"))
def test_greedy_and_coupled_text_is_the_plain_one(case: str) -> None:
    """And each row's cycles are those that it has alone, whatever its neighbours want."""
    target, prompts, (name, rule) = tiny.model(), tiny.prompts(4), case.split()
    ask = {"max_new_tokens": 24, "temperature": 0.9 if rule == "coupled" else 0.0, "rule": rule}
    plain = specjax.generate(target, "none", prompts, seed=[3, 4, 5, 6], **ask)
    ask["details"] = True
    out = specjax.generate(target, specs(0.5)[name], prompts, seed=[3, 4, 5, 6], **ask)
    assert out.tokens == plain.tokens
    guesses = [len(cycle.proposed) for row in out.trace.rows for cycle in row]
    assert min(guesses) < max(guesses), "every cycle verified as many"
    with pytest.raises(ValueError, match="no one cost"):
        explain_trace(out.trace, Calibration({}, {}, ()))
    # Alone: beside rows that want what it wants, in the same program.
    alone = specjax.generate(target, specs(0.5)[name], [prompts[2]] * 4, seed=[5] * 4, **ask)
    ours, theirs = alone.trace.rows[0], out.trace.rows[2]
    assert alone.tokens == [out.tokens[2]] * 4
    assert [c.proposed for c in ours] == [c.proposed for c in theirs]
    assert [c.accepted for c in ours] == [c.accepted for c in theirs]


def test_the_state_is_that_of_a_fresh_prefill() -> None:
    """Row by row: then drafting ends with the row's own guesses, and all may be right."""
    target, spec = tiny.model(), specs(0.5)["lm"]
    propose, all_right = jax.jit(lambda drafter, *rest: drafter.propose(*rest)[0]), 0
    for seed, text in enumerate(tiny.prompts(16)):
        proposals = []
        for cycles in (6, 0):
            row = session.Row(text, Options(temperature=0.8), seed, 40, ())
            s = session.Session(target, spec, [row])
            s.advance(cycles)
            if cycles:
                text, last = text + s.new_tokens()[0], s.trace().rows[0][-1]
                all_right += 0 < last.accepted == len(last.proposed) < 5
            asked = s.request
            context = decode.Context(
                s.state.tokens, s.state.length, asked.keys, asked.sampling, None
            )
            proposals.append(propose(s.drafter, s.state.draft, context))
        ours, fresh = proposals
        wanted = int(fresh.wanted[0])
        assert int(ours.wanted[0]) == wanted
        assert (ours.tokens[0, :wanted] == fresh.tokens[0, :wanted]).all()
        np.testing.assert_allclose(ours.q[0, :wanted], fresh.q[0, :wanted], atol=2e-4)
    assert all_right >= 2, all_right


def test_a_chance_is_that_of_a_slot_and_the_token_before() -> None:
    """DSpark's head, asked for all slots at once, gives each what it gives alone."""
    spec = specs(0.5)["dspark"]
    s = session.Session(tiny.model(), spec, [session.Row(tiny.prompts(1)[0], Options(), 0, 40, ())])
    asked = s.request
    context = decode.Context(s.state.tokens, s.state.length, asked.keys, asked.sampling, None)
    ask = jax.jit(lambda drafter, *rest: (drafter.propose(*rest), drafter.states(*rest)))
    (proposal, held), states = ask(s.drafter, s.state.draft, context)
    net = s.drafter.net.module
    before = [int(context.pending[0, 0]), *proposal.tokens[0, :-1].tolist()]
    assert len(set(before)) > 1
    one = jax.jit(s.drafter._confidence)
    alone = [
        float(one(net, states[:, i : i + 1], jnp.array([[token]]))[0, 0])
        for i, token in enumerate(before)
    ]
    np.testing.assert_allclose(held.confidence[0], alone, rtol=1e-5)
    sure = np.array(alone) >= 0.5
    assert int(proposal.wanted[0]) == (len(sure) if sure.all() else int(sure.argmin()))


@pytest.mark.parametrize("name", thinned(["lm", "dspark"], "dspark"))
def test_no_branch_copies_a_cache(name: str) -> None:
    """What users run has a pass of each width in one program; what is fixed has no branch."""
    target = tiny.model()
    branches = []
    for least in (0.5, None):
        rows = [session.Row(p, Options(), 0, 60, ()) for p in tiny.prompts(3)]
        s = session.Session(target, specs(least)[name], rows)
        args = (target.net, s.drafter, s.rule, s.request, s.state, jnp.int32(4))
        compiled = decode.run_program.lower(*args).compile(compiler_options=AS_USERS_DO)
        text, caches = compiled.as_text(), caches_in(s.state)
        for shape in {x.shape for c in caches for x in jax.tree.leaves(c.layers)}:
            assert count_copies(text, shape) == (0, 0), shape
        found = re.findall(r" conditional\(.*branch_computations=\{([^}]*)\}", text)
        branches.append(max((len(x.split(",")) for x in found), default=0))
    assert branches == [len(doubling_widths(5)), 0]


def test_what_is_no_probability_is_refused() -> None:
    target = tiny.model()
    for least in (0.0, -1, 1.5, "high", True):
        spec = LM(tiny.draft(), 3, min_confidence=least)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"min_confidence=.*must be in \(0, 1\]"):
            spec.bind(target, "sampled")
    headless = tiny.fresh("dspark", 3, target)
    config = dataclasses.replace(headless.net.config, confidence_head=False)
    net = dataclasses.replace(headless.net, config=config)
    spec = dataclasses.replace(headless, net=net, min_confidence=0.5)
    with pytest.raises(ValueError, match="has no confidence head"):
        spec.bind(target, "sampled")
