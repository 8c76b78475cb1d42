"""Why a run is as fast as it is, in words and numbers.

Speedup is tau over what a cycle costs in plain steps: draft + verification + rest + what was
measured beyond all that. Each of them is made perfect in turn, all else as it was, and the one that
would bring most is named first. The numbers are those of `cost_model.predict`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from specjax.core.family import Family, parse_family
from specjax.lab.costs.advice import TAU_NEAR_1, against_draft, against_rejection, near_1
from specjax.lab.costs.cost_model import hold_last_conditional, predict, survival_of
from specjax.lab.records.case import lossy
from specjax.lab.records.costs import Costs
from specjax.lab.records.experts import Union
from specjax.lab.records.prediction import NEGATIVE_OVERHEAD, Prediction
from specjax.trace.metrics import Figures

DRAFT, ACCEPTANCE, VERIFICATION, OVERHEAD = "draft", "acceptance", "verification", "overhead"
_WORTH = 1.1  # a gain below this is not called a limit
_HUNT_BELOW = 0.9  # measured over predicted
_FREE = 1.15  # verification up to here counts as free


@dataclasses.dataclass(frozen=True)
class Limit:
    """One factor, made perfect with all else as it was."""

    name: str  # draft, acceptance, verification or overhead
    now: float  # plain steps of a cycle; of acceptance tau
    perfect: float  # the same if it were perfect
    speedup: float  # then
    gain: float  # of that over the speedup now
    why: str
    advice: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What limits a run."""

    k: int
    batch: int
    tau: float
    speedup: float  # measured, or predicted where nothing was
    predicted: float
    measured_over_predicted: float | None
    cost: float  # of a cycle in plain steps, as measured where it was
    limits: tuple[Limit, ...]  # by gain, the largest first
    prediction: Prediction  # for every k up to this one
    hints: tuple[str, ...]

    @property
    def first(self) -> Limit:
        """The factor that would bring most."""
        return self.limits[0]

    @property
    def text(self) -> str:
        """All of it, as paragraphs."""
        ratio = self.measured_over_predicted
        told = "predicted" if ratio is None else "measured"
        lines = [
            f"Speedup {self.speedup:.2f} ({told}"
            + ("" if ratio is None else f"; predicted {self.predicted:.2f}, ratio {ratio:.2f}")
            + f") with k = {self.k}, batch {self.batch}: tau {self.tau:.2f} of at most "
            f"{self.k + 1}, and a cycle costs {self.cost:.2f} plain steps ({self._parts})."
        ]
        first = self.first
        if first.gain < _WORTH:
            lines.append(
                f"No single factor holds it back by more than {_WORTH - 1:.0%}; the largest is "
                f"{first.name}, which would bring {first.speedup:.2f} if it were perfect."
            )
        else:
            lines.append(f"The limit is {first.name}: {first.why}")
            lines += [f"  - {line}" for line in first.advice]
        gains = ", ".join(f"{x.name} {x.speedup:.2f} (x{x.gain:.2f})" for x in self.limits)
        lines.append(f"Speedup if one factor were perfect, all else as it is: {gains}.")
        best = self.prediction
        if best.best_k == 0:
            lines.append(f"No k up to {self.k} pays by these costs: decode plainly.")
        elif best.best_k == self.k:
            lines.append(f"Of all k up to {self.k}, {self.k} is predicted to be the best.")
        else:
            lines.append(
                f"With k = {best.best_k} speedup would be {best.best_speedup:.2f} as predicted, "
                f"with this k {best.speedup[best.ks.index(self.k)]:.2f}."
            )
        return "\n".join([*lines, *self.hints])

    @property
    def _parts(self) -> str:
        costs = [x for x in self.limits if x.name != ACCEPTANCE]
        return " + ".join(f"{x.name} {x.now:.2f}" for x in sorted(costs, key=lambda x: x.name))


def marked(explanation: Explanation, lossless: bool, rule: str) -> Explanation:
    """The same, with a word on a rule that is not lossless."""
    told = lossy(lossless, rule)
    hints = (f"Not lossless: {told}", *explanation.hints) if told else explanation.hints
    return dataclasses.replace(explanation, hints=hints)


def explain(
    figures: Figures,
    costs: Costs,
    *,
    speedup: float | None = None,
    device: str = "",
    experts: Union | None = None,
    single: Costs | None = None,
    family: str | None = None,
) -> Explanation:
    """Names what limits a run, and what each factor would bring.

    Args:
      figures: `metrics.figures` of the run.
      costs: of its batch and context, with all k up to its own.
      speedup: measured over plain decoding; None: from ``step_ms`` and the calibrated plain step,
        where there is a time at all.
      device: as in a trace's setup, "cpu cpu" or "gpu NVIDIA H100"; "": unknown.
      experts: that its passes read, of a mixture-of-experts target; None: dense or unknown.
      single: costs at batch 1, to tell what the batch does to verification.
      family: of the drafter, one of `Family`, for advice; None: by its name in the costs.

    Raises:
      ValueError: in one line, on a run without guesses, or where k exceeds what was calibrated.
    """
    k, tau = figures.num_draft, figures.tau
    if k < 1 or not figures.accept_hist or tau is None:
        raise ValueError("The run holds no cycles with guesses, so no speculation to explain.")
    costs = costs.reading(None if experts is None else experts.by_guesses)
    survival = survival_of(figures.accept_hist, k)
    prediction = predict(survival, costs, _ks(costs, k), alpha=figures.alpha_hat)
    # What was cut off at a text's end counts neither here nor there.
    predicted = tau / costs.total(k)
    if speedup is None and figures.step_ms is not None:
        speedup = tau / (figures.step_ms / 1e3 / costs.plain_s)
    now = predicted if speedup is None else speedup
    situation = _Situation(
        figures=figures,
        costs=costs,
        k=k,
        tau=tau,
        survival=survival,
        cost=tau / now,
        device=device,
        experts=experts,
        single=single,
        family=parse_family(family, costs.drafter),
    )
    return Explanation(
        k=k,
        batch=costs.batch,
        tau=tau,
        speedup=now,
        predicted=predicted,
        measured_over_predicted=None if speedup is None else now / predicted,
        cost=situation.cost,
        limits=_limits(situation, prediction),
        prediction=prediction,
        hints=tuple(_hints(situation, now, predicted, speedup is not None, prediction)),
    )


def _ks(costs: Costs, k: int) -> list[int]:
    """The numbers of guesses up to k that costs tell of. Raises ValueError if k is none."""
    ks = [j for j in range(1, k + 1) if j in costs.draft or _between(costs, j)]
    if k not in ks:
        raise ValueError(
            f"The run has k={k}, and costs were measured for k = {', '.join(map(str, costs.ks))}: "
            "calibrate with it."
        )
    return ks


def _limits(s: _Situation, prediction: Prediction) -> tuple[Limit, ...]:
    """What each factor would bring, were it ideal; those that bring most first."""
    cost, overhead = s.cost, max(s.overhead, 0.0)
    now = s.tau / cost
    # Where a cycle was measured to take less than its parts apart, each part did.
    scale = cost / (s.draft + s.verify + overhead)
    perfect = {
        DRAFT: (s.draft, 0.0, s.tau / (cost - scale * s.draft)),
        ACCEPTANCE: (s.tau, s.k + 1.0, (s.k + 1) / cost),
        VERIFICATION: (s.verify, 1.0, s.tau / (cost - scale * max(s.verify - 1, 0.0))),
        OVERHEAD: (s.overhead, 0.0, s.tau / (cost - overhead)),
    }
    found = [
        Limit(name, value, ideal, then, then / now, *_SAYS[name](s, then, prediction))
        for name, (value, ideal, then) in perfect.items()
    ]
    return tuple(sorted(found, key=lambda x: -x.gain))


def _between(costs: Costs, k: int) -> bool:
    return bool(costs.ks) and costs.ks[0] <= k <= costs.ks[-1]


@dataclasses.dataclass(frozen=True)
class _Situation:
    """What the sentences are about."""

    figures: Figures
    costs: Costs
    k: int
    tau: float
    survival: list[float]
    cost: float  # of a cycle, as measured where there is a time
    device: str
    experts: Union | None
    single: Costs | None
    family: Family

    @property
    def draft(self) -> float:
        return self.costs.draft_at(self.k)

    @property
    def verify(self) -> float:
        return self.costs.verify_at(self.k)

    @property
    def rest(self) -> float:
        """Calibrated."""
        return self.costs.rest_at(self.k)

    @property
    def overhead(self) -> float:
        """Beyond draft and verification, the calibrated rest included."""
        return self.cost - self.draft - self.verify

    @property
    def calls(self) -> int:
        """Draft passes that follow each other."""
        return self.k if self.costs.draft_calls.get(self.costs.ks[-1], 1) > 1 else 1


def _says_draft(s: _Situation, then: float, best: Prediction) -> tuple[str, tuple[str, ...]]:
    if s.calls > 1:
        why = (
            f"{s.calls} draft passes follow each other, {s.draft / s.calls:.2f} plain steps each, "
            f"{s.draft:.2f} a cycle. A free draft would bring {then:.2f}."
        )
    else:
        what = "looking up" if s.family is Family.LOOKUP else "its one pass"
        why = (
            f"{what} takes {s.draft:.2f} plain steps a cycle. A free draft would bring {then:.2f}."
        )
    advice = against_draft(s.family, s.calls)
    if best.best_k not in (0, s.k):
        advice.append(f"k = {best.best_k}, for which {best.best_speedup:.2f} is predicted")
    return why, tuple(advice)


def _says_acceptance(s: _Situation, then: float, best: Prediction) -> tuple[str, tuple[str, ...]]:
    why = (
        f"{s.tau:.2f} of at most {s.k + 1} tokens come of a cycle; the first guess is accepted in "
        f"{s.survival[0]:.0%} of the cycles, all {s.k} in {s.survival[-1]:.0%}. If every guess "
        f"were accepted, speedup would be {then:.2f}."
    )
    advice = against_rejection(s.family, s.tau < TAU_NEAR_1 and s.k > 1)
    if best.best_k not in (0, s.k):
        advice.append(f"k = {best.best_k}, for which {best.best_speedup:.2f} is predicted")
    return why, tuple(advice)


def _says_verification(s: _Situation, then: float, best: Prediction) -> tuple[str, tuple[str, ...]]:
    batch, tokens = s.costs.batch, s.costs.batch * (s.k + 1)
    why = f"a pass over {s.k + 1} tokens a row takes {s.verify:.2f} plain steps. "
    advice = []
    if best.best_k not in (0, s.k):
        advice.append(f"k = {best.best_k}, for which {best.best_speedup:.2f} is predicted")
    if s.experts is not None or _grows_like_experts(s):
        told = "a mixture of experts, if it is one,"
        if s.experts is not None:
            told = f"experts, of which this run read {s.experts.text},"
        why += (
            f"It grows from the first guess on (v(1) = {s.costs.verify_at(_first(s)):.2f}) at "
            f"batch {batch}, where a dense target's weights are read once whatever k is: with "
            f"{told} every further token touches further experts (MoE). "
        )
        advice.append("a drafter with a higher survival at small k, rather than a longer block")
        if s.experts is None:
            advice.append("if the target is dense, a profile: something else grows with k")
    elif batch > 1:
        why += (
            f"Verification is not free at this batch: {batch} rows are {tokens} tokens a pass, "
            "enough to keep the arithmetic units busy instead of waiting for weights. "
        )
        if s.single is not None and _between(s.single, s.k):
            why += f"At batch 1 it is {s.single.verify_at(s.k):.2f}. "
        advice.append("a smaller batch, or plain decoding while the machine is this full")
    elif s.device.startswith("cpu"):
        why += "A CPU has little arithmetic to spare: every further token costs. "
    else:
        why += "At batch 1 it should be near 1: see whether the pass is bound by arithmetic. "
    return why + f"Free verification would bring {then:.2f}.", tuple(advice)


def _first(s: _Situation) -> int:
    return min(k for k in s.costs.verify if k > 0)


def _grows_like_experts(s: _Situation) -> bool:
    """At batch 1 on an accelerator, v(k) rises at once and then less: other experts, soon all."""
    if s.costs.batch > 1 or s.device.startswith("cpu") or s.verify < _FREE:
        return False
    first = _first(s)
    slope = (s.costs.verify_at(first) - 1) / first
    return slope >= (s.verify - 1) / s.k and slope >= 0.1


def _says_overhead(s: _Situation, then: float, best: Prediction) -> tuple[str, tuple[str, ...]]:
    del best
    beyond = s.overhead - s.rest
    why = (
        f"a cycle takes {s.overhead:.2f} plain steps ({1e3 * s.overhead * s.costs.plain_s:.2f} ms) "
        f"beyond draft and verification; {s.rest:.2f} of them were calibrated in the loop on the "
        f"device, {beyond:.2f} are neither. Without them speedup would be {then:.2f}."
    )
    advice = []
    call = s.costs.call_s / s.costs.plain_s
    if call > 0 and beyond >= 0.5 * call and beyond >= 0.1:
        advice.append(
            f"the host: a device call costs {call:.2f} plain steps, so this is about "
            f"{beyond / call:.1f} of them a cycle: run the loop on the device (no host_loop), and "
            "more cycles a call where text is streamed or stop strings are looked for"
        )
    advice.append("a profile (--profile_dir): what runs between draft and verification, and when")
    return why, tuple(advice)


_SAYS = {
    DRAFT: _says_draft,
    ACCEPTANCE: _says_acceptance,
    VERIFICATION: _says_verification,
    OVERHEAD: _says_overhead,
}


def _hints(
    s: _Situation, now: float, predicted: float, measured: bool, best: Prediction
) -> Iterator[str]:
    f = s.figures
    if measured and now < _HUNT_BELOW * predicted:
        yield (
            f"Measured over predicted is {now / predicted:.2f}, below {_HUNT_BELOW}: there is "
            "overhead to hunt that the calibrated cycle does not have."
        )
    if s.overhead < 0:
        yield f"The overhead is negative ({s.overhead:.2f} plain steps): {NEGATIVE_OVERHEAD}"
    if s.tau < TAU_NEAR_1 and s.k > 1:
        yield near_1(s.family, s.tau)
    if s.costs.batch > 1 and s.verify > _FREE:
        yield f"Verification is not free at batch {s.costs.batch}: v({s.k}) = {s.verify:.2f}."
    if best.best_k == s.k:
        further = 2 * s.k
        if _between(s.costs, further):
            curve = hold_last_conditional(s.survival, further)
            more = predict(curve, s.costs, [further]).speedup[0]
            if more > 1.05 * predicted:
                yield (
                    f"k may be too small: if further guesses were accepted like the last one, "
                    f"k = {further} would bring {more:.2f} (extrapolated)."
                )
    if not f.requests or not f.tokens:
        return
    length = f.tokens / f.requests
    if length < 4 * (s.k + 1):
        yield (
            f"Texts are short, {length:.0f} tokens each: the last cycle of a text is "
            "cut, and little is left to speed up."
        )
    if f.ttft_ms is not None and f.step_ms is not None and f.tpot_ms is not None:
        before, decode = max(f.ttft_ms - f.step_ms, 0.0), f.tpot_ms * length
        share = before / (before + decode)
        if share > 0.3:
            whole = (before + decode * now) / (before + decode)
            yield (
                f"Prefill is {share:.0%} of a request's time, and speculation does not touch it: "
                f"over whole requests the speedup is {whole:.2f}."
            )
    if s.costs.noise > 0.1:
        yield (
            f"The calibration was noisy (quartiles {s.costs.noise:.0%} apart): other processes "
            "shared the machine, and every number here is as rough."
        )
