"""Every verification rule emits exactly the target's law.

Small vocabularies, random conditional tables, float64: all blocks of guesses are enumerated, the
law that ``Rule.law`` returns is weighted by how likely the drafter was to guess each, and the
joint law of the next K + 1 tokens is compared with the target's. Registering a rule puts it into
these tests.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import verify
from specjax.core.types import Proposal
from specjax.lab.audit.tables import (
    all_blocks,
    along,
    cases,
    chance,
    deviation,
    evaluate,
    is_greedy,
    suitable,
)
from specjax.verify.block import hit_chances

TOLERANCE = 1e-12
SHAPES = [(2, 1), (2, 3), (3, 2), (4, 1), (4, 3)]  # V, K
RULES = sorted(verify.RULES)


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


# --- exactness --------------------------------------------------------------------------------


@pytest.mark.parametrize("V,K", SHAPES)
@pytest.mark.parametrize("name", RULES)
def test_emits_the_target_law(name, V, K):
    """Guesses drawn from q: freshly, or with the target's noise if that is what the rule takes."""
    rule = verify.get(name)
    if not rule.takes & {"sampled", "coupled"}:
        pytest.skip("takes deterministic guesses only")
    blocks = all_blocks(V, K)
    for case, (p, q) in suitable(rule, V, K).items():
        error = deviation(p, blocks, chance(q, blocks), *evaluate(rule, p, blocks, q)).size
        assert error < TOLERANCE, case


@pytest.mark.parametrize("V,K", [(2, 3), (3, 2), (4, 1)])
@pytest.mark.parametrize("name", RULES)
def test_emits_the_target_law_for_every_deterministic_guess(name, V, K):
    """Every block, with every pattern of empty slots, is a drafter of its own."""
    rule = verify.get(name)
    if "one_hot" not in rule.takes:
        pytest.skip("takes drawn guesses only")
    blocks = all_blocks(V + 1, K) - 1
    for case, (p, _) in suitable(rule, V, K).items():
        survival, emission = evaluate(rule, p, blocks)
        assert survival.dtype == emission.dtype == np.float64
        assert (survival[blocks < 0] == 0).all()
        for d in range(len(blocks)):
            one = slice(d, d + 1)
            error = deviation(p, blocks[one], np.ones(1), survival[one], emission[one]).size
            assert error < TOLERANCE, (case, blocks[d])


@pytest.mark.parametrize("empty", [0, 1, 2])
@pytest.mark.parametrize("name", RULES)
def test_empty_slots_of_a_drafter_with_q(name, empty):
    """A slot left empty ends the block; the row of q there means nothing."""
    rule, V, K = verify.get(name), 3, 3
    blocks = all_blocks(V, K)
    weights = {case: chance(q, blocks) for case, (_, q) in cases(V, K).items()}
    blocks[:, empty] = -1
    for case, (p, q) in suitable(rule, V, K).items():
        survival, emission = evaluate(rule, p, blocks, q)
        assert (survival[:, empty:] == 0).all(), case
        error = deviation(p, blocks, weights[case], survival, emission).size
        assert error < TOLERANCE, case


@pytest.mark.parametrize("name", RULES)
def test_no_guesses_is_plain_decoding(name):
    rule, blocks = verify.get(name), np.zeros((1, 0), np.int32)
    for p, q in suitable(rule, 3, 0).values():
        for drafted in (None, q):
            law = evaluate(rule, p, blocks, drafted)
            assert deviation(p, blocks, np.ones(1), *law).size < TOLERANCE


# --- expectations, pointwise order, literal vectors -------------------------------------------


def closed_forms(p, q, blocks):
    """P(num_accepted >= i + 1 | first i + 1 guesses), [D, K]: of the token and the block rule."""
    K = blocks.shape[1]
    at = blocks[..., None]
    p_at = np.take_along_axis(along(p, blocks, K), at, -1)[..., 0]
    q_at = np.take_along_axis(along(q, blocks, K), at, -1)[..., 0]
    ratio = np.divide(p_at, q_at, out=np.zeros_like(p_at), where=q_at > 0)
    level, levels = np.ones(len(blocks)), []
    for i in range(K):
        level = np.minimum(1, level * ratio[:, i])
        levels.append(level)
    return np.minimum(1, ratio).cumprod(1), np.stack(levels, 1)


@pytest.mark.parametrize("V,K", SHAPES)
def test_survival_matches_the_closed_forms(V, K):
    blocks = all_blocks(V, K)
    for case, (p, q) in cases(V, K).items():
        weights = chance(q, blocks)
        by_token, by_block = closed_forms(p, q, blocks)
        token, _ = evaluate(verify.get("token"), p, blocks, q)
        block, _ = evaluate(verify.get("block"), p, blocks, q)
        np.testing.assert_allclose(token, by_token, atol=TOLERANCE, err_msg=case)
        assert (by_token <= by_block + TOLERANCE).all()
        for i in range(K):  # the block rule looks ahead: average over the guesses still to come
            group = np.arange(len(blocks)) // V ** (K - i - 1)
            mean = np.bincount(group, weights * block[:, i])
            want = np.bincount(group, weights * by_block[:, i])
            np.testing.assert_allclose(mean, want, atol=TOLERANCE, err_msg=case)


@pytest.mark.parametrize("name", RULES)
def test_a_point_mass_q_is_a_deterministic_guess(name):
    """Nor does the block rule gain anything over the token rule then."""
    rule, blocks = verify.get(name), all_blocks(3, 2)
    sure = {case: t for case, t in suitable(rule, 3, 2).items() if is_greedy(t[1])}
    for p, q in sure.values():
        drafted = chance(q, blocks) == 1
        laws = [evaluate(rule, p, blocks, q), evaluate(rule, p, blocks)]
        if name == "block":
            laws.append(evaluate(verify.get("token"), p, blocks))
        for survival, emission in laws[1:]:
            np.testing.assert_allclose(laws[0][0][drafted], survival[drafted], atol=TOLERANCE)
            stop = 1 - np.pad(survival, ((0, 0), (0, 1)))[drafted][..., None]
            np.testing.assert_allclose(
                laws[0][1][drafted] * stop, emission[drafted] * stop, atol=TOLERANCE
            )


@pytest.mark.parametrize(
    "p,q,K,token,block",
    [
        ([1 / 3, 2 / 3], [2 / 3, 1 / 3], 2, 10 / 9, 11 / 9),
        ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5], 3, 1.533, 1.695),
    ],
)
def test_expected_number_accepted(p, q, K, token, block):
    p, q = ([np.tile(row, (len(row) ** n, 1)) for n in range(K + 1)] for row in (p, q))
    blocks = all_blocks(p[0].shape[1], K)
    weights = chance(q, blocks)
    for name, want in (("token", token), ("block", block)):
        survival, _ = evaluate(verify.get(name), p, blocks, q)
        assert abs(weights @ survival.sum(1) - want) < 1e-12, name


@pytest.mark.parametrize(
    "guesses,levels,chances",
    [([2, 0, 1], [0.4, 1, 1], [0, 1, 1]), ([0, 2, 2], [1, 0.4, 0.16], [1, 0, 0.16])],
)
def test_block_vectors(guesses, levels, chances):
    with jax.enable_x64(True):
        p, q = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.2, 0.3, 0.5])
        proposal = Proposal(tokens=jnp.array(guesses, jnp.int32), q=jnp.tile(q, (3, 1)))
        law = jax.jit(verify.get("block").law)(jnp.tile(jnp.log(p), (4, 1)), proposal)
        residual = jnp.maximum(law.scale[:3, None] * law.p[:3] - law.q, 0.0).sum(-1)
        hits = hit_chances(residual, jnp.log(law.scale))
    np.testing.assert_allclose(law.scale, [1, *levels], atol=1e-12)
    np.testing.assert_allclose(hits[1:], chances, atol=1e-12)
    survival = 1 - np.cumprod(1 - np.array(chances[::-1], float))[::-1]
    np.testing.assert_allclose(law.survival, survival, atol=1e-12)


def test_coupling_closed_form():
    for p, q in cases(4, 0).values():
        p, q = p[0][0], q[0][0]
        with jax.enable_x64(True):
            joint = np.asarray(jax.jit(verify.gumbel_coupling)(p, q))
            acceptance = float(jax.jit(verify.gumbel_acceptance)(p, q))
        np.testing.assert_allclose(joint.sum(0), p, atol=TOLERANCE)
        np.testing.assert_allclose(joint.sum(1), q, atol=TOLERANCE)
        pair = np.maximum(np.outer(p, q), np.outer(q, p)).T  # max(p_l q_j, q_l p_j) at [j, l]
        want = sum(p[j] * q[j] / pair[j].sum() for j in range(4) if p[j] * q[j] > 0)
        assert abs(joint.trace() - want) < TOLERANCE and abs(acceptance - want) < TOLERANCE
        tv = np.abs(p - q).sum() / 2
        assert (1 - tv) / (1 + tv) - TOLERANCE <= want <= 1 - tv + TOLERANCE


# --- rules that are wrong must be seen to be wrong --------------------------------------------


def wrong_argmax_scored_as_sampled(p, q, blocks, weights, survival, emission):
    best = [(level == level.max(-1, keepdims=True)) * 1.0 for level in q]
    return chance(best, blocks), survival, emission


def wrong_uncapped_full_block(p, q, blocks, weights, survival, emission):
    """Block verification, but the whole block goes through with min(1, prod r), not P_K."""
    last = survival[:, -1:]
    uncapped = np.minimum(1, chance(p, blocks) / weights)[:, None]
    factor = np.divide(1 - uncapped, 1 - last, out=np.ones_like(last), where=last < 1)
    return weights, 1 - (1 - survival) * factor, emission


def wrong_residual_from_p(p, q, blocks, weights, survival, emission):
    return weights, survival, along(p, blocks, blocks.shape[1] + 1)


def wrong_bonus_from_q(p, q, blocks, weights, survival, emission):
    K = blocks.shape[1]
    bonus = along(q, blocks, K + 1)[:, K:]
    return weights, survival, np.concatenate([emission[:, :K], bonus], 1)


@pytest.mark.parametrize(
    "name,wrong",
    [
        ("token", wrong_argmax_scored_as_sampled),
        ("block", wrong_argmax_scored_as_sampled),
        ("block", wrong_uncapped_full_block),
        ("token", wrong_residual_from_p),
        ("block", wrong_residual_from_p),
        ("token", wrong_bonus_from_q),
        ("block", wrong_bonus_from_q),
    ],
)
def test_planted_errors_are_found(name, wrong):
    p, q = cases(2, 3)["random"]
    blocks = all_blocks(2, 3)
    right = (chance(q, blocks), *evaluate(verify.get(name), p, blocks, q))
    assert deviation(p, blocks, *right).size < TOLERANCE
    assert deviation(p, blocks, *wrong(p, q, blocks, *right)).size > 1e-3


# --- the registry -----------------------------------------------------------------------------


def test_defaults_pass_their_own_check():
    names = {}
    for kind in verify.KINDS:
        for greedy in (False, True):
            rule = verify.default_rule(kind, greedy)
            verify.check(rule, kind, greedy)
            names[kind, greedy] = rule.name
    assert [names[kind, False] for kind in verify.KINDS] == ["coupled", "block", "coupled"]
    assert {names[kind, True] for kind in verify.KINDS} == {"greedy"}
    assert verify.get("token") == verify.Token() != verify.get("block")


@pytest.mark.parametrize(
    "name,kind,message",
    [
        ("greedy", "one_hot", "temperature=0"),
        ("coupled", "sampled", "use rule 'block'"),
        ("block", "coupled", "use rule 'coupled'"),
        ("token", "coupled", "use rule 'coupled'"),
        ("token", "beam", "one_hot, sampled, coupled"),
    ],
)
def test_inexact_combinations_are_refused(name, kind, message):
    with pytest.raises(ValueError, match=message) as error:
        verify.check(verify.get(name), kind, greedy=False)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="block, coupled, greedy, token"):
        verify.get("typical")
