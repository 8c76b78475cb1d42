"""Small conditional tables, and the exact law of the text that a verification rule emits.

``tables[n][c]`` is the law [V] of the token after the n guesses that are numbered c in base V. All
blocks of guesses are enumerated, the law that ``Rule.law`` returns is weighted by how likely the
drafter was to guess each, and the joint law of the next K + 1 tokens is compared with the target's:
no Monte Carlo, float64.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core import trees
from specjax.core.by_shape import calling
from specjax.core.types import Parents, Proposal
from specjax.verify.base import Rule

Tables = Sequence[np.ndarray]  # K + 1 levels, [V ** n, V] each


def random_tables(rng: np.random.Generator, V: int, K: int) -> list[np.ndarray]:
    return [rng.dirichlet(np.ones(V), size=V**n) for n in range(K + 1)]


def each(change: Callable[..., np.ndarray], *tables: Tables) -> list[np.ndarray]:
    """Applies a change to every row, then normalises it again."""
    rows = [change(*level) for level in zip(*tables)]
    return [row / row.sum(-1, keepdims=True) for row in rows]


def cases(V: int, K: int) -> dict[str, tuple[Tables, Tables]]:
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


def all_blocks(V: int, K: int) -> np.ndarray:
    """[V ** K, K] int32, in the order of their numbers in base V."""
    return np.stack(np.unravel_index(np.arange(V**K), (V,) * K), -1).astype(np.int32)


def along(tables: Tables, blocks: np.ndarray, levels: int) -> np.ndarray:
    """The rows met along each block: [D, levels, V]. Empty slots (-1) read as token 0."""
    V, number, rows = tables[0].shape[1], np.zeros(len(blocks), int), []
    for n in range(levels):
        rows.append(tables[n][number])
        if n < blocks.shape[1]:
            number = number * V + np.maximum(blocks[:, n], 0)
    return np.stack(rows, 1) if rows else np.zeros((len(blocks), 0, V))


def chance(tables: Tables, blocks: np.ndarray) -> np.ndarray:
    """The probability of each block: [D]."""
    rows = along(tables, blocks, blocks.shape[1])
    return np.take_along_axis(rows, blocks[..., None], -1)[..., 0].prod(1)


@functools.cache
def compiled(rule: Rule) -> Callable[..., Any]:
    """(logits [D, K + 1, V], proposals) -> survival [D, K], emission [D, K + 1, V].

    Of trees with W + 1 rows of logits: [D, M] and [D, M + 1, V].
    """

    def one(logits: jax.Array, proposal: Proposal) -> tuple[jax.Array, jax.Array]:
        law, parents = rule.law(logits, proposal), proposal.parents
        levels = logits.shape[0] - 1 if parents is None else trees.num_levels(parents)
        index = jnp.arange(levels + 1, dtype=jnp.int32)
        return law.survival, jax.vmap(law.emission)(index)

    return jax.jit(jax.vmap(one))


def law_of(
    rule: Rule,
    chances: np.ndarray,
    blocks: np.ndarray,
    q: np.ndarray | None,
    parents: Parents | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """What the rule says in float64: survival [D, K] and emission [D, K + 1, V], as `compiled`.

    Args:
      rule: asked for its law.
      chances: [D, K + 1, V], the target's laws along each block.
      blocks: [D, K] int32, the guesses.
      q: [D, K, V], the draft's laws; None: deterministic guesses.
      parents: the tree that guesses form, ``chances`` being those behind its places; None: a chain.
    """
    with np.errstate(divide="ignore"):
        logits = np.log(chances)
    with jax.enable_x64(True):
        drafted = None if q is None else jnp.asarray(q)
        proposal = Proposal(jnp.asarray(blocks), drafted, parents)
        size = f"{logits.shape[-1]} tokens, float64"
        survival, emission = calling(
            f"rule {rule.name!r}: law() ({size})",
            lambda: compiled(rule)(jnp.asarray(logits), proposal),
        )
    return np.asarray(survival), np.asarray(emission)


def evaluate(
    rule: Rule, p: Tables, blocks: np.ndarray, q: Tables | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """survival [D, K] and emission [D, K + 1, V] for given tables."""
    K = blocks.shape[1]
    drafted = None if q is None else along(q, blocks, K)
    return law_of(rule, along(p, blocks, K + 1), blocks, drafted)


@dataclasses.dataclass(frozen=True)
class Deviation:
    """The text of K + 1 tokens whose probability is furthest from the target's."""

    size: float  # inf: what the rule returned is no law
    words: str


def deviation(
    p: Tables, blocks: np.ndarray, weights: np.ndarray, survival: np.ndarray, emission: np.ndarray
) -> Deviation:
    """How far the law of the next K + 1 tokens is from the target's.

    Args:
      p: the target's tables.
      blocks: [D, K], the guesses.
      weights: [D], how likely the drafter is to guess each.
      survival, emission: [D, K], [D, K + 1, V], what the rule says about each.
    """
    (D, K), V = blocks.shape, p[0].shape[1]
    if survival.shape != (D, K) or emission.shape != (D, K + 1, V):
        return Deviation(np.inf, f"survival is {survival.shape}, emission {emission.shape}")
    rising = np.diff(survival, axis=1, append=0.0) > 10 * np.finfo(survival.dtype).eps
    outside = ~((survival >= 0) & (survival <= 1)) | rising  # NaN is outside, too
    unlike_a_law = ~np.isfinite(emission).all(-1) | (emission < 0).any(-1)
    for wrong, of in ((outside, survival), (unlike_a_law, emission)):
        if wrong.any():
            d, i = (int(x) for x in np.argwhere(wrong)[0])
            what = "survival" if of is survival else f"the emission after {i} guesses"
            return Deviation(np.inf, f"of the guesses {blocks[d].tolist()} {what} is {of[d]}")
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
    worst = int(np.abs(got - want).argmax())
    text = [int(t) for t in np.unravel_index(worst, (V,) * (K + 1))]
    return Deviation(
        float(abs(got - want)[worst]),
        f"the text {text} has probability {want[worst]:.12g} and is emitted with {got[worst]:.12g}",
    )


def is_greedy(tables: Tables) -> bool:
    return all(((level == 0) | (level == 1)).all() for level in tables)


def suitable(rule: Rule, V: int, K: int) -> dict[str, tuple[Tables, Tables]]:
    """The cases a rule claims to be exact for."""
    return {n: t for n, t in cases(V, K).items() if is_greedy(t[0]) or not rule.greedy_only}
