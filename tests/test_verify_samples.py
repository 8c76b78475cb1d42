"""``Rule.sample`` draws from ``Rule.law``, alone and in a batch; what float32 does to both."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from specjax import verify
from specjax.core.noise import gumbel_argmax
from specjax.core.types import Proposal
from specjax.lab.audit.tables import (
    all_blocks,
    along,
    cases,
    chance,
    compiled,
    evaluate,
    suitable,
)
from specjax.verify.base import VerifyKeys

RULES = sorted(verify.RULES)
PAIRS = [(name, kind) for name in RULES for kind in sorted(verify.get(name).takes)]


@pytest.fixture(autouse=True)
def strict():
    with (
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.debug_key_reuse(True),
    ):
        yield


@functools.cache
def some_keys(count, K):
    """Raw key data [count, K + 3, 2]: unlike keys, the key-reuse checker lets us read it twice."""
    keys = jax.jit(lambda key: jax.random.split(key, (count, K + 3)))(jax.random.key(7))
    return np.asarray(jax.random.key_data(keys))


def wrapped(data):
    keys = jax.random.wrap_key_data(jnp.asarray(data))
    return VerifyKeys(accept=keys[..., 0], residual=keys[..., 1], noise=keys[..., 2:])


def verdict_of(rule, data, logits, proposal):
    return rule.sample(wrapped(data), rule.law(logits, proposal))


@jax.jit
@jax.vmap
def coupled_guess(key_data, logits):
    return gumbel_argmax(jax.random.wrap_key_data(key_data), logits)


def drafted_blocks(kind, q, count, K):
    """Guesses [count, K] of one kind, drawn one after the other along their own prefix."""
    V, blocks = q[0].shape[1], np.tile(np.array([0, 1, 2][:K], np.int32), (count, 1))
    rng = np.random.default_rng(5)
    for n in range(K if kind != "one_hot" else 0):
        rows = along(q, blocks, n + 1)[:, n]
        if kind == "sampled":
            drawn = (rng.random((count, 1)) > rows.cumsum(-1)).sum(-1)
            blocks[:, n] = np.minimum(drawn, V - 1)
        else:
            noise = some_keys(count, K)[:, 2 + n]
            with np.errstate(divide="ignore"):
                blocks[:, n] = coupled_guess(noise, np.log(rows).astype(np.float32))
    return blocks


@pytest.mark.parametrize("name,kind", PAIRS)
def test_samples_follow_the_law(name, kind):
    """Chi-square over (block, num_accepted, next token); and no row notices its batch."""
    rule, V, K, count = verify.get(name), 3, 2, 20_000
    p, q = suitable(rule, V, K).get("random again") or cases(V, K)["temperature 0"]
    blocks = drafted_blocks(kind, q, count, K)
    with np.errstate(divide="ignore"):
        logits = np.log(along(p, blocks, K + 1)).astype(np.float32)
    rows = None if kind == "one_hot" else along(q, blocks, K).astype(np.float32)
    inputs = (some_keys(count, K), logits, Proposal(tokens=jnp.asarray(blocks), q=rows))

    one = functools.partial(verdict_of, rule)
    verdict = jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(*inputs))
    single = jax.jit(one)
    for b in range(8 if kind == max(rule.takes) else 0):  # one kind: compiling is the cost
        alone = single(*jax.tree.map(lambda x, b=b: jnp.asarray(x[b]), inputs))
        jax.tree.map(lambda x, y, b=b: np.testing.assert_array_equal(x, y[b]), alone, verdict)
    tokens, num = verdict.tokens, verdict.num_accepted
    assert ((tokens[:, :K] == blocks) | (np.arange(K) >= num[:, None])).all()

    every = blocks[:1] if kind == "one_hot" else all_blocks(V, K)
    weights = np.ones(1) if kind == "one_hot" else chance(q, every)
    survival, emission = evaluate(rule, p, every, None if kind == "one_hot" else q)
    ends = np.pad(np.pad(survival, ((0, 0), (1, 0)), constant_values=1), ((0, 0), (0, 1)))
    want = count * weights[:, None, None] * -np.diff(ends, axis=1)[..., None] * emission
    block = blocks @ (V ** np.arange(K)[::-1]) if len(every) > 1 else 0
    got = np.zeros_like(want)
    np.add.at(got, (block, num, tokens[np.arange(count), num]), 1)

    assert (got[want == 0] == 0).all()
    rare = want < 10  # pooled
    want, got = np.append(want[~rare], want[rare].sum()), np.append(got[~rare], got[rare].sum())
    want, got = want[want > 1], got[want > 1]
    statistic = ((got - want) ** 2 / want).sum()
    assert len(want) == 1 or statistic < stats.chi2.isf(1e-4, len(want) - 1)


def test_coupled_text_is_the_plain_sample():
    logits = jax.random.normal(jax.random.key(1), (4, 8))
    data = some_keys(1, 3)[0]
    plain = coupled_guess(data[2:], logits)
    one = jax.jit(functools.partial(verdict_of, verify.get("coupled")))
    for num in range(4):
        guesses = jnp.where(jnp.arange(3) == num, -1, plain[:3])
        verdict = one(data, logits, Proposal(tokens=guesses, q=None))
        assert int(verdict.num_accepted) == num
        np.testing.assert_array_equal(verdict.tokens[: num + 1], plain[: num + 1])


@pytest.mark.parametrize("name", RULES)
def test_extreme_float32_values_stay_finite(name):
    blocks = all_blocks(5, 2) - 1
    logits = [[1e4, -1e4, 0.0, -np.inf], [-1e30, 0.0, -90.0, 1.0], [0.0] * 4]
    q = [[1e-38, 1.0, 0.0, 1e-30], [1e-45, 1e-20, 1.0, 0.0]]
    logits, q = (jnp.tile(jnp.array(x, jnp.float32), (len(blocks), 1, 1)) for x in (logits, q))
    for drafted in (None, q):
        law = compiled(verify.get(name))(logits, Proposal(tokens=blocks, q=drafted))
        survival, emission = map(np.asarray, law)
        assert np.isfinite(survival).all() and (survival >= 0).all() and (survival <= 1).all()
        assert (emission >= 0).all() and (emission[:, 0, 3] == 0).all()
        np.testing.assert_allclose(emission.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_a_coin_of_zero_accepts_nothing_impossible(name, monkeypatch):
    """``coin <= survival`` would: in float32 the coin is 0 once in 2**23 tosses."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.zeros(shape, dtype))
    rule, logits = verify.get(name), jnp.array([[0.0, -jnp.inf], [0.0, -jnp.inf]])
    proposal = Proposal(tokens=jnp.array([1], jnp.int32), q=jnp.array([[0.5, 0.5]]))
    # A fresh jit: nothing traced under the patch may be found again by another test.
    verdict = jax.jit(functools.partial(verdict_of, rule))(some_keys(1, 1)[0], logits, proposal)
    assert int(verdict.num_accepted) == 0 and int(verdict.tokens[0]) == 0
    survival = np.asarray(jax.jit(lambda x, y: rule.law(x, y).survival)(logits, proposal))
    assert (survival >= 0).sum() == 1 and (survival > 0).sum() == 0  # the sloppy comparison, ours
