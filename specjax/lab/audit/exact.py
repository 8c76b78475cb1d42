"""The rule alone: every proposal of a tiny vocabulary, in float64, no sampling."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from specjax.lab.audit.evidence import Evidence
from specjax.lab.audit.report import Check
from specjax.lab.audit.tables import (
    Deviation,
    Tables,
    all_blocks,
    chance,
    deviation,
    evaluate,
    suitable,
)
from specjax.verify import Rule

TOLERANCE = 1e-12
_SINGLE = 1e-5  # of a rule that computes in float32 whatever it is given
SHAPES = ((3, 2), (2, 3))  # vocabulary, guesses


def check_rule(evidence: Evidence) -> Check:
    """The law of the next K + 1 tokens, for every kind of guesses that the rule takes."""
    sides = [s for s in (evidence.subject.hot, evidence.subject.cold) if s is not None]
    rules = list(dict.fromkeys(side.rule for side in sides))
    worst, number, first = 0.0, 0, None
    for rule in rules:
        for V, K in SHAPES:
            for where, exact, found in deviations(rule, V, K):
                number += 1
                worst = max(worst, found.size)
                if first is None and found.size > exact:
                    first = (
                        f"Rule {rule.name}, vocabulary {V}, {K} guesses, {where}: {found.words}."
                    )
    names = " and ".join(rule.name for rule in rules)
    return Check.unless(
        name="rule",
        tested=(
            f"the exact law of {names} over {number} tables of p and q, all proposals enumerated "
            f"in float64; the largest deviation is {worst:.1e}"
        ),
        statistic=worst,
        counterexample=first,
    )


def deviations(rule: Rule, V: int, K: int) -> Iterator[tuple[str, float, Deviation]]:
    """(case in words, what rounding allows, the deviation) of one rule."""
    if rule.takes & {"sampled", "coupled"}:
        whole = all_blocks(V, K)
        for case, (p, q) in suitable(rule, V, K).items():
            weights = chance(q, whole)
            for empty in (None, *range(K)):
                blocks = whole.copy()
                if empty is not None:
                    blocks[:, empty] = -1
                law = evaluate(rule, p, blocks, q)
                where = f"guesses drawn from q, case {case!r}"
                where += "" if empty is None else f", slot {empty} left empty"
                yield where, _allowed(law[0]), deviation(p, blocks, weights, *law)
    if "one_hot" in rule.takes:
        yield from _deterministic(rule, V, K, suitable(rule, V, K))


def _deterministic(
    rule: Rule, V: int, K: int, tables: dict[str, tuple[Tables, Tables]]
) -> Iterator[tuple[str, float, Deviation]]:
    """Every block, with every pattern of empty slots, is a drafter of its own."""
    blocks = all_blocks(V + 1, K) - 1
    for case, (p, _) in tables.items():
        survival, emission = evaluate(rule, p, blocks)
        allowed, worst, guess = _allowed(survival), Deviation(-1.0, ""), 0
        for d in range(len(blocks)):
            one = slice(d, d + 1)
            found = deviation(p, blocks[one], np.ones(1), survival[one], emission[one])
            if found.size > max(worst.size, allowed) or d == 0:
                worst, guess = found, d
            if worst.size > allowed:
                break
        yield f"deterministic guesses {blocks[guess].tolist()}, case {case!r}", allowed, worst


def _allowed(law: np.ndarray) -> float:
    return TOLERANCE if law.dtype == np.float64 else _SINGLE
