"""What speculation should bring, from how much is accepted and what a cycle costs.

    speedup(k) = tau(k) / (draft(k) + v(k) + rest),     tau(k) = 1 + sum of survival[i], i = 1..k

All costs are those of one plain decoding step of the same batch: v(k) of verifying k guesses, v(0)
= 1; draft(k) of all draft work of a cycle; rest of what a whole cycle takes beyond both. Nothing is
extrapolated silently: what was not measured is refused, and `hold_last_conditional` is there for
who wants to go on at his own risk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from specjax.lab.records.costs import Costs
from specjax.lab.records.prediction import Prediction


def predict(
    survival: Sequence[float],
    costs: Costs,
    ks: Sequence[int] | None = None,
    *,
    alpha: float | None = None,
) -> Prediction:
    """Speedup, best k, and what a single alpha would have said (Leviathan et al. 2023, th. 3.8).

    A curve measured with K guesses is cut off at k < K. Cycles of fewer guesses begin at other
    places, so that the curve of k itself (measured, or `measure.replay`) is a little more exact.

    Args:
      survival: [K], P(at least i guesses of a cycle are accepted), i = 1..K, over all cycles
        (`survival_of`).
      costs: of the batch in question.
      ks: numbers of guesses; None: every one from 1 to what was measured. 0 is plain decoding.
      alpha: the chance of a guess to be accepted behind accepted ones, for the single-alpha formula
        (`alpha_hat`); None: survival[0].

    Raises:
      ValueError: on a curve that is none, or a k whose survival or costs were not measured.
    """
    survival = check_survival(survival)
    ks = _check_ks(ks, survival, costs)
    if alpha is None:
        alpha = survival[0] if survival else 0.0
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha!r}: must be from 0 to 1.")
    tau = tuple(1.0 + math.fsum(survival[:k]) for k in ks)
    cost = tuple(costs.total(k) for k in ks)
    if min(cost) <= 0:
        raise ValueError(
            f"By these costs a cycle takes {min(cost):.3g} plain steps: measure again."
        )
    speedup = tuple(t / c for t, c in zip(tau, cost))
    single = tuple(geometric_tau(alpha, k) / c for k, c in zip(ks, cost))
    return Prediction(
        batch=costs.batch,
        context=costs.context,
        ks=ks,
        tau=tau,
        cost=cost,
        speedup=speedup,
        tokens_per_s=tuple(costs.batch * s / costs.plain_s for s in speedup),
        alpha=alpha,
        single_alpha_speedup=single,
        best_k=_best(ks, speedup),
        single_alpha_best_k=_best(ks, single),
    )


def _check_ks(ks: Sequence[int] | None, survival: Sequence[float], costs: Costs) -> tuple[int, ...]:
    """The numbers of guesses, None: all that were measured. Raises ValueError on what is none."""
    if ks is None:
        first, last = min(costs.ks, default=1), max(costs.ks, default=0)
        ks = range(first, min(len(survival), last) + 1)
    if not ks:
        raise ValueError("No k to predict for: neither survival nor costs cover any.")
    for k in ks:
        if not isinstance(k, int) or isinstance(k, bool) or k < 0:
            raise ValueError(f"k={k!r}: must be a whole number of guesses, at least 0.")
    if max(ks) > len(survival):
        raise ValueError(
            f"k={max(ks)}, but survival is known for {len(survival)} guesses: measure it with "
            "more, or extend it on purpose (cost_model.hold_last_conditional)."
        )
    return tuple(ks)


def _best(ks: Sequence[int], speedup: Sequence[float]) -> int:
    fastest = max(speedup)
    return 0 if fastest <= 1 else min(k for k, s in zip(ks, speedup) if s == fastest)


def check_survival(survival: Sequence[float]) -> list[float]:
    """The curve as floats. Raises ValueError unless it falls from at most 1 to at least 0."""
    curve = [float(s) for s in survival]
    for i, (s, before) in enumerate(zip(curve, [1.0, *curve]), 1):
        if not 0 <= s <= before + 1e-9:
            raise ValueError(
                f"survival[{i}]={s:g} behind {before:g}: a survival curve falls from at most 1 to "
                "at least 0. With a varying number of guesses use cost_model.survival_of, which "
                "counts every cycle."
            )
    return curve


def survival_of(accept_hist: Mapping[int, int] | Mapping[str, int], num_draft: int) -> list[float]:
    """Survival [K] over all cycles, from how many cycles accepted how many guesses.

    What `figures` calls survival counts only the cycles that had so many guesses. Where a drafter
    (prompt lookup) sometimes guesses less, those cycles cost as much and bring less: here they
    count, so that tau = 1 + the sum holds.

    Raises:
      ValueError: on an empty histogram or one with more than ``num_draft`` accepted.
    """
    counts = {int(a): int(n) for a, n in accept_hist.items()}
    total = sum(counts.values())
    if total <= 0 or min(counts) < 0 or max(counts) > num_draft:
        raise ValueError(f"accept_hist={dict(accept_hist)!r} is none of {num_draft} guesses.")
    return [sum(n for a, n in counts.items() if a >= i) / total for i in range(1, num_draft + 1)]


def hold_last_conditional(survival: Sequence[float], num_draft: int) -> list[float]:
    """The curve extended to ``num_draft``, each further guess as likely as the last measured one.

    An extrapolation: a drafter trained for shorter blocks does worse than it says.
    """
    curve = check_survival(survival)
    if not curve:
        raise ValueError("No survival to extend: measure at least one guess.")
    before = curve[-2] if len(curve) > 1 else 1.0
    held = curve[-1] / before if before > 0 else 0.0
    while len(curve) < num_draft:
        curve.append(curve[-1] * held)
    return curve


def geometric_tau(alpha: float, k: int) -> float:
    """Tokens per target pass if every guess is accepted with ``alpha``, independently."""
    return k + 1.0 if alpha == 1 else (1 - alpha ** (k + 1)) / (1 - alpha)
