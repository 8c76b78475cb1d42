"""Pearson's chi-square with what it can see, and where the observed is furthest from expected."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import optimize, stats

MIN_EXPECTED = 10.0  # of a cell; rarer ones are pooled
MIN_ROWS = 50  # of a condition; rarer ones are not tested
SURE = 0.99  # the power at which a test says what it detects
EVENT = 0.1  # .. of an event of this probability


@dataclasses.dataclass(frozen=True)
class Fit:
    """Counts against expected counts, in several conditions at once."""

    statistic: float
    df: int
    p_value: float  # 0 where something happened that cannot
    samples: int

    def detects(self, alpha: float) -> float:
        """What probability an event of probability `EVENT` has when it is found, surely enough.

        The statistic of a law that is off by d at an event of probability e has the noncentral
        chi-square law of noncentrality ``samples * d^2 / (e (1 - e))``; the chance that it leaves
        the ``1 - alpha`` quantile of the right law is the power. Solved for a power of `SURE`.
        """
        bound = stats.chi2.isf(alpha, self.df)
        missing = lambda x: float(stats.ncx2.sf(bound, self.df, x)) - SURE
        noncentrality = optimize.brentq(missing, 1e-3, 10 * bound + 1000)
        return EVENT + float(np.sqrt(noncentrality * EVENT * (1 - EVENT) / self.samples))


def fit(observed: np.ndarray, expected: np.ndarray) -> Fit:
    """Both [C, M]: the counts of M outcomes in each of C conditions.

    Within a condition outcomes that are expected less than `MIN_EXPECTED` times count as one.
    Rows need not share one law, ``expected`` being the sum of theirs: the statistic is then smaller
    than chi-square, never larger.
    """
    impossible = bool((observed[expected <= 0] > 0).any())
    statistic, df, samples = 0.0, 0, 0
    for got, want in zip(observed, expected):
        if want.sum() < MIN_ROWS:
            continue
        order = np.argsort(want)
        got, want = got[order], want[order]
        pooled = max(int((want < MIN_EXPECTED).sum()), 1)
        while want[:pooled].sum() < MIN_EXPECTED:
            pooled += 1
        got = np.append(got[:pooled].sum(), got[pooled:])
        want = np.append(want[:pooled].sum(), want[pooled:])
        if len(want) > 1:
            statistic += float(((got - want) ** 2 / want).sum())
            df += len(want) - 1
        samples += int(got.sum())
    p_value = float(stats.chi2.sf(statistic, df)) if df else 1.0
    return Fit(statistic, df, 0.0 if impossible else p_value, samples)


def furthest(observed: np.ndarray, expected: np.ndarray, alpha: float) -> tuple[int, int] | None:
    """The first counterexample: (condition, outcome) of [C, M] counts; None: nothing stands out.

    An outcome stands out where its count leaves the normal quantile of ``alpha`` shared among all
    cells. The first condition that has one is taken, and the worst in it.
    """
    total = expected.sum(1, keepdims=True)
    scale = np.sqrt(np.maximum(expected * (1 - expected / np.maximum(total, 1e-300)), 0.0))
    gap = np.abs(observed - expected)
    # Half a count of grace, as the normal law is continuous; the sure and the impossible have none.
    z = np.where(scale > 1e-9, np.maximum(gap - 0.5, 0.0) / np.maximum(scale, 1e-9), 0.0)
    z = np.where((scale <= 1e-9) & (gap > 0.5), np.inf, z)
    bound = stats.norm.isf(alpha / (2 * max(z.size, 1)))
    # The normal law is no guide to cells that are hardly ever expected.
    out = (z > bound) & ((expected >= 5) | (expected <= 0))
    if not out.any():
        return None
    condition = int(out.any(1).argmax())
    return condition, int(np.where(out[condition], z[condition], -1.0).argmax())
