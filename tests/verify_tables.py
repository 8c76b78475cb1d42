"""Small conditional tables, and the exact law of the text that a verification rule emits.

``tables[n][c]`` is the law [V] of the token after the n guesses that are numbered c in base V.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core.types import Proposal


def random_tables(rng, V, K):
    return [rng.dirichlet(np.ones(V), size=V**n) for n in range(K + 1)]


def each(change, *tables):
    """Applies a change to every row, then normalises it again."""
    rows = [change(*level) for level in zip(*tables)]
    return [row / row.sum(-1, keepdims=True) for row in rows]


def cases(V, K):
    """Names to (target tables, draft tables): the random and the awkward ones."""
    rng = np.random.default_rng(100 * V + K)
    draw = functools.partial(random_tables, rng, V, K)
    ids, low = np.arange(V), np.arange(V) < (V + 1) // 2
    p, q = draw(), draw()
    best = each(lambda a: (a == a.max(-1, keepdims=True)) * 1.0, p)
    half = each(lambda a: a * ((a >= np.sort(a, -1)[:, -max(V - 1, 1)][:, None]) | (V == 2)), p)
    mixed = [best[n] if n % 2 else p[n] for n in range(K + 1)]
    return {
        "random": (p, q),
        "random again": (draw(), draw()),
        "equal": (p, p),
        "disjoint": (each(lambda a: a * low, p), each(lambda a: a * ~low, q)),
        "zero in p": (each(lambda a: a * (ids != 0), p), q),
        "zero in q": (p, each(lambda a: a * (ids != 0), q)),
        "truncated p": (half, p),
        "nearly equal": (p, each(lambda a, b: a * (1 + 1e-9 * b), p, q)),
        "sure draft": (p, each(lambda a: (a == a.max(-1, keepdims=True)) * 1.0, q)),
        "temperature 0": (best, q),
        "temperature 0, sure draft": (best, best),
        "mixed temperature": (mixed, q),
    }


def all_blocks(V, K):
    return np.stack(np.unravel_index(np.arange(V**K), (V,) * K), -1).astype(np.int32)


def along(tables, blocks, levels):
    """The rows met along each block: [D, levels, V]. Empty slots (-1) read as token 0."""
    V, number, rows = tables[0].shape[1], np.zeros(len(blocks), int), []
    for n in range(levels):
        rows.append(tables[n][number])
        if n < blocks.shape[1]:
            number = number * V + np.maximum(blocks[:, n], 0)
    return np.stack(rows, 1) if rows else np.zeros((len(blocks), 0, V))


def chance(tables, blocks):
    """The probability of each block: [D]."""
    rows = along(tables, blocks, blocks.shape[1])
    return np.take_along_axis(rows, blocks[..., None], -1)[..., 0].prod(1)


@functools.cache
def compiled(rule):
    def one(logits, proposal):
        law = rule.law(logits, proposal)
        index = jnp.arange(logits.shape[0], dtype=jnp.int32)
        return law.survival, jax.vmap(law.emission)(index)

    return jax.jit(jax.vmap(one))


def evaluate(rule, p, blocks, q=None):
    """survival [D, K] and emission [D, K + 1, V] for given tables, as numpy arrays."""
    K = blocks.shape[1]
    with np.errstate(divide="ignore"):
        logits = np.log(along(p, blocks, K + 1))
    with jax.enable_x64(True):
        drafted = None if q is None else jnp.asarray(along(q, blocks, K))
        proposal = Proposal(tokens=jnp.asarray(blocks), q=drafted)
        survival, emission = compiled(rule)(jnp.asarray(logits), proposal)
    assert survival.dtype == emission.dtype == np.float64
    assert survival.shape == (len(blocks), K)
    return np.asarray(survival), np.asarray(emission)


def exactness_error(p, blocks, weights, survival, emission):
    """Largest deviation of the law of the next K + 1 tokens from the target's."""
    (D, K), V = blocks.shape, p[0].shape[1]
    assert np.isfinite(survival).all() and np.isfinite(emission).all()
    assert (survival >= 0).all() and (survival <= 1).all()
    assert (np.diff(survival, axis=1) <= 1e-15).all()
    ends = np.concatenate([np.ones((D, 1)), survival, np.zeros((D, 1))], 1)
    stop = weights[:, None] * (ends[:, :-1] - ends[:, 1:])
    prefix, got, want = np.zeros(D, int), np.ones(1), np.ones(1)
    for n in range(K + 1):
        # What stopped earlier goes on with the target; what stops here adds its own token.
        got = got[:, None] * p[n] * (n > 0)
        np.add.at(got, prefix, stop[:, n, None] * emission[:, n])
        got, want = got.reshape(-1), (want[:, None] * p[n]).reshape(-1)
        if n < K:
            prefix = prefix * V + np.maximum(blocks[:, n], 0)
    return np.abs(got - want).max()


def is_greedy(tables):
    return all(((level == 0) | (level == 1)).all() for level in tables)


def suitable(rule, V, K):
    """The cases a rule claims to be exact for."""
    return {n: t for n, t in cases(V, K).items() if is_greedy(t[0]) or not rule.greedy_only}
