"""Explanations of stored runs: a benchmark's directory, or a trace with costs."""

from __future__ import annotations

from pathlib import Path

from specjax.lab.costs.adaptive import no_one_cost
from specjax.lab.costs.explain import Explanation, explain, marked
from specjax.lab.records.case import Case
from specjax.lab.records.costs import Calibration, Costs, costs_at
from specjax.lab.records.costs import load as load_costs
from specjax.lab.records.run import load_summary
from specjax.trace.metrics import compare, figures
from specjax.trace.trace import Trace


def explain_run(directory: str | Path) -> dict[str, Explanation | str]:
    """Case -> its explanation, or in a sentence why there is none. Plain decoding is left out.

    Raises:
      ValueError: in one line, if the directory holds no finished benchmark, or no case to explain.
    """
    directory = Path(directory).expanduser()
    if not (directory / "metrics.json").exists():
        raise ValueError(f"{directory} holds no finished benchmark: no metrics.json.")
    summary = load_summary(directory / "metrics.json")
    cases = [case for case in summary.cases if not case.is_plain]
    if not cases:
        raise ValueError(f"{directory} holds no case with a drafter.")
    adaptive = [case for case in cases if case.drafter in summary.run.unpredicted]
    found: dict[str, Explanation | str] = {
        case.name: f"Not explained: {no_one_cost(case.drafter)}" for case in adaptive
    }
    if len(adaptive) == len(cases):
        return found
    costs = directory / "costs.json"
    if not costs.exists():
        raise ValueError(
            f"{directory} has no costs.json, without which nothing can be said about time: run the "
            "benchmark with calibration."
        )
    known = load_costs(costs, elsewhere=True)
    for case in (case for case in cases if case.name not in found):
        try:
            found[case.name] = _explain_case(case, known, summary.run.device)
        except ValueError as error:
            found[case.name] = f"Not explained: {error}"
    return found


def _explain_case(case: Case, known: Calibration, device: str) -> Explanation:
    fit = known.of(case)
    if not fit or case.batch is None:
        raise ValueError(
            f"costs.json knows nothing of {case.drafter}, {case.rule}, T={case.temperature}."
        )
    context = min(c.context for c in fit) if case.predicted is None else case.predicted.context
    found = explain(
        case.metrics,
        costs_at(fit, batch=case.batch, context=context),
        speedup=case.speedup,
        device=device,
        single=_at_batch_1(fit, context),
        family=case.family,
        experts=case.experts,
    )
    return marked(found, case.lossless, case.rule)


def explain_trace(trace: Trace, known: Calibration, plain: Trace | None = None) -> Explanation:
    """Explains one recorded generation, or several joined.

    Args:
      trace: of speculation.
      known: costs of its drafter, rule, batch and length; they may have been measured elsewhere.
      plain: plain decoding of the same prompts, for a measured speedup.

    Raises:
      ValueError: in one line, where the costs do not cover the trace, or nothing was guessed.
    """
    about, found = trace.about, figures(trace)
    if len(about.widths) > 1 or about.min_confidence is not None:
        raise ValueError(no_one_cost(about.drafter or "The drafter"))
    drafters = {c.drafter for c in known.costs}
    if about.drafter is not None and about.drafter not in drafters:
        raise ValueError(
            f"The trace is of drafter {about.drafter!r}, the costs are of "
            f"{', '.join(map(repr, sorted(drafters)))}: calibrate with that drafter."
        )
    if about.target not in (None, known.target.name):
        raise ValueError(
            f"The trace is of target {about.target!r}, the costs are of "
            f"{known.target.name!r}: calibrate with that target."
        )
    k, positions = found.num_draft, [c.position for c in trace]
    context = round(sum(positions) / max(len(positions), 1)) + k + 1
    costs = known.at(
        batch=about.batch or 1,
        context=context,
        drafter=about.drafter,
        rule=about.rule,
        temperature=about.temperature,
    )
    speedup = None if plain is None else compare(trace, plain).speedup
    explained = explain(
        found,
        costs,
        speedup=speedup,
        device=about.device,
        family=about.family,
    )
    return marked(explained, about.lossless, about.rule or "")


def _at_batch_1(fit: list[Costs], context: int) -> Costs | None:
    try:
        return costs_at(fit, batch=1, context=context)
    except ValueError:
        return None  # not measured
