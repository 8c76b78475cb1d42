"""What speculation should bring, from how much is accepted and what a cycle costs.

    speedup(k) = tau(k) / (draft(k) + v(k) + rest),     tau(k) = 1 + sum of survival[i], i = 1..k

All costs are those of one plain decoding step of the same batch: v(k) of verifying k guesses, v(0)
= 1; draft(k) of all draft work of a cycle; rest of what a whole cycle takes beyond both. Nothing is
extrapolated silently: what was not measured is refused, and `hold_last_conditional` is there for
who wants to go on at his own risk.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Costs:
    """What cycles cost on one machine, for one batch size and one length of the caches.

    Attributes:
      batch: rows decoded together.
      context: slots of the caches, which a step's cost depends on (`session.bucket`).
      plain_s: seconds of one plain decoding step of the whole batch.
      verify: k -> v(k), a cycle that verifies k guesses and drafts nothing, in plain steps.
      draft: k -> all draft work of a cycle of k guesses, in plain steps.
      draft_calls: k -> draft passes of a cycle that follow each other; 1, or no entry: one.
      rest: what a whole cycle costs beyond draft and verify, in plain steps; the median over k. It
        may be below 0: two programs apart can cost more than both in one.
      cycle: k -> a whole cycle as measured, in plain steps: where it is known, so is the rest of
        each k (`rest_at`).
      call_s: seconds that a device call costs beyond its cycles; NaN if unknown.
      noise: distance of the quartiles of the measured cycles over their median, at the worst k.
      drafter: its name; "" for none, where ``draft`` is 0.
      rule: the verification rule of the measured cycles.
      temperature: of the measured cycles.
    """

    batch: int
    context: int
    plain_s: float
    verify: Mapping[int, float]
    draft: Mapping[int, float]
    draft_calls: Mapping[int, int]
    rest: float = 0.0
    cycle: Mapping[int, float] = dataclasses.field(default_factory=dict)
    call_s: float = math.nan
    noise: float = math.nan
    drafter: str = ""
    rule: str = ""
    temperature: float = 0.0

    def __post_init__(self) -> None:
        numbers = {"plain_s": self.plain_s, "rest": self.rest}
        for name, table in (("verify", self.verify), ("draft", self.draft), ("cycle", self.cycle)):
            numbers |= {f"{name}[{k}]": value for k, value in table.items()}
        for name, value in numbers.items():
            if not math.isfinite(value) or (value < 0 and name != "rest"):
                raise ValueError(f"Costs with {name}={value!r}: measure them again.")
        if self.plain_s <= 0:
            raise ValueError(f"Costs with plain_s={self.plain_s!r}: measure them again.")

    @property
    def ks(self) -> tuple[int, ...]:
        """The numbers of guesses that were measured."""
        return tuple(sorted(k for k in self.draft if k in self.verify and k > 0))

    @property
    def c(self) -> float:
        """Cost of one draft pass in plain steps: of those that follow each other at the largest k.

        NaN if nothing was measured.
        """
        if not self.ks:
            return math.nan
        return self.draft[self.ks[-1]] / self.draft_calls.get(self.ks[-1], 1)

    @property
    def additivity(self) -> dict[int, float]:
        """k -> draft + verify + ``rest``, one for all k, over the measured cycle; ideally 1."""
        sums = {k: self.draft[k] + self.verify[k] + self.rest for k in self.ks}
        return {k: total / self.cycle[k] for k, total in sums.items() if k in self.cycle}

    def verify_at(self, k: int) -> float:
        """v(k), linear between measured k. Raises ValueError above the largest."""
        return interpolate({0: 1.0, **self.verify}, k, "v(k)", "k")

    def draft_at(self, k: int) -> float:
        """Draft work of a cycle, linear between measured k. Raises ValueError outside of them."""
        return 0.0 if k == 0 else interpolate(self.draft, k, "the draft's cost", "k")

    def rest_at(self, k: int) -> float:
        """The rest of a cycle of k guesses: of the measured cycles, ``rest`` where there are none.

        Raises ValueError outside of the measured k.
        """
        if k == 0:
            return 0.0
        if not self.cycle:
            return self.rest
        whole = interpolate(self.cycle, k, "a whole cycle", "k")
        return whole - self.draft_at(k) - self.verify_at(k)

    def total(self, k: int) -> float:
        """A cycle of k guesses in plain steps; 1 for k = 0, which is plain decoding."""
        return 1.0 if k == 0 else self.draft_at(k) + self.verify_at(k) + self.rest_at(k)


def interpolate(table: Mapping[int, float], at: int, what: str, axis: str) -> float:
    """Linear between neighbouring entries of ``table``.

    Raises:
      ValueError: outside of the entries; ``what`` and ``axis`` name them in the message.
    """
    if at in table:
        return table[at]
    below = max((x for x in table if x < at), default=None)
    above = min((x for x in table if x > at), default=None)
    if below is None or above is None:
        measured = f"{min(table)} to {max(table)}" if table else "nothing"
        raise ValueError(f"{what} was measured for {axis} = {measured}, not {at}: calibrate there.")
    share = (at - below) / (above - below)
    return (1 - share) * table[below] + share * table[above]


def costs_at(costs: Sequence[Costs], *, batch: int, context: int) -> Costs:
    """Costs for a batch and a length of the caches: measured, or linear between neighbours.

    Seconds are interpolated, not ratios: those of a step are close to linear in either. All of
    ``costs`` must be of one drafter, rule and temperature.

    Raises:
      ValueError: outside of what was measured.
    """
    kinds = sorted({(c.drafter, c.rule, c.temperature) for c in costs})
    if len(kinds) != 1:
        raise ValueError(f"Costs of {len(kinds)} settings instead of one: {kinds}; choose.")
    cells = {(c.batch, c.context): c for c in costs}
    if (batch, context) in cells:
        return cells[batch, context]
    by_context: dict[int, dict[int, Costs]] = {}
    for (b, s), cell in cells.items():
        by_context.setdefault(s, {})[b] = cell
    rows: dict[int, Costs] = {}
    for s in _neighbours(by_context, context, "context"):
        ends = _neighbours(by_context[s], batch, "batch")
        rows[s] = _blend([by_context[s][b] for b in ends], ends, batch)
    ends = _neighbours(rows, context, "context")
    blended = _blend([rows[s] for s in ends], ends, context)
    return dataclasses.replace(blended, batch=batch, context=context)


def _neighbours(table: Mapping[int, object], at: int, axis: str) -> list[int]:
    """The entry itself, or the nearest on both sides. Raises ValueError outside."""
    if at in table:
        return [at]
    below = max((x for x in table if x < at), default=None)
    above = min((x for x in table if x > at), default=None)
    if below is None or above is None:
        raise ValueError(
            f"Costs were measured for {axis} = {', '.join(map(str, sorted(table)))}, and {at} lies "
            "outside: calibrate there."
        )
    return [below, above]


def _blend(ends: Sequence[Costs], places: Sequence[int], at: int) -> Costs:
    """Between two cells, linear in seconds; for one, that cell."""
    if len(ends) == 1:
        return ends[0]
    low, high = ends
    share = (at - places[0]) / (places[1] - places[0])
    plain_s = (1 - share) * low.plain_s + share * high.plain_s

    def mix(a: float, b: float) -> float:
        return ((1 - share) * a * low.plain_s + share * b * high.plain_s) / plain_s

    def table(a: Mapping[int, float], b: Mapping[int, float]) -> dict[int, float]:
        return {k: mix(a[k], b[k]) for k in sorted(a.keys() & b.keys())}

    return dataclasses.replace(
        low,
        plain_s=plain_s,
        verify=table(low.verify, high.verify),
        draft=table(low.draft, high.draft),
        cycle=table(low.cycle, high.cycle),
        rest=mix(low.rest, high.rest),
        call_s=(1 - share) * low.call_s + share * high.call_s,
    )


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Speedup over plain decoding against k, all for one batch."""

    batch: int
    context: int
    ks: tuple[int, ...]
    tau: tuple[float, ...]  # tokens per target pass, the target's own included
    cost: tuple[float, ...]  # of a cycle, in plain steps
    speedup: tuple[float, ...]
    tokens_per_s: tuple[float, ...]  # of the whole batch
    alpha: float  # the one that the single-alpha formula was given
    single_alpha_speedup: tuple[float, ...]  # with the same costs
    best_k: int  # of ks; 0: plain decoding is as fast as any
    single_alpha_best_k: int

    @property
    def best_speedup(self) -> float:
        """At ``best_k``; 1 where that is plain decoding."""
        return max(1.0, *self.speedup)


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
    if ks is None:
        first, last = min(costs.ks, default=1), max(costs.ks, default=0)
        ks = range(first, min(len(survival), last) + 1)
    ks = tuple(ks)
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


def survival_of(accept_hist: Mapping[int | str, int], num_draft: int) -> list[float]:
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


def geometric_best_k(alpha: float, c: float, v: float = 1.0) -> float:
    """The k, a real number, with the largest (1 - alpha^(k+1)) / ((1 - alpha) (k c + v)).

    The derivative vanishes at k + 1 = (A + W(-exp(-A))) / ln(alpha), A = 1 + (v/c - 1) |ln alpha|,
    W the lower branch of Lambert's function. With u = -W that is u - ln(u) = A, and k + 1 =
    ln(u) / |ln alpha|, which neither overflows nor underflows.

    Args:
      alpha: between 0 and 1, both excluded.
      c: cost of a draft pass, in plain steps, above 0.
      v: cost of verifying, in plain steps, the same for every k.

    Returns:
      At least 0; 0 where the first guess does not pay.

    Raises:
      ValueError: on arguments outside of that.
    """
    if not 0 < alpha < 1 or not 0 < c < math.inf or not 0 < v < math.inf:
        raise ValueError(f"alpha={alpha!r}, c={c!r}, v={v!r}: need 0 < alpha < 1, c > 0, v > 0.")
    rate = -math.log(alpha)
    a = 1 + (v / c - 1) * rate
    if a <= 1:
        return 0.0
    u = a + 2 * math.log(a) + 2  # above the solution, from where Newton falls monotonically
    for _ in range(100):
        step = (u - math.log(u) - a) / (1 - 1 / u)
        u -= step
        if abs(step) <= 1e-14 * u:
            break
    return max(math.log(u) / rate - 1, 0.0)
