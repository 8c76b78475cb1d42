"""metrics.json of a run: everything that its traces, results and costs say. No model is needed."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence

from specjax.in_turn import AHEAD
from specjax.lab.bench.exactness import SUSPICIOUS
from specjax.lab.bench.store import Store
from specjax.lab.costs.pooled import pool
from specjax.lab.costs.predicted import predict_case
from specjax.lab.records.case import Case, Category, Comparison, Figures, Planned, Wall
from specjax.lab.records.costs import Calibration, costs_at
from specjax.lab.records.costs import load as load_costs
from specjax.lab.records.prediction import Predicted
from specjax.lab.records.run import Measurement, Run, Summary
from specjax.session.slots import Passes
from specjax.trace import metrics
from specjax.trace.clock import passes
from specjax.trace.depth import Depth, by_depth
from specjax.trace.trace import Trace


def summarise(store: Store) -> Summary:
    """Writes metrics.json and the verdict in run.json; returns the former.

    Raises:
      ValueError: if a case is not complete, or a file is damaged.
    """
    run = store.read_run()
    lacking = [c.name for c in run.cases if not store.has_trace(c.name)]
    if lacking:
        raise ValueError(
            f"{store.path} is not complete: {len(lacking)} of {len(run.cases)} cases are "
            f"missing, such as {lacking[0]}; start the run again to go on."
        )
    path = store.path / "costs.json"
    costs = load_costs(path, elsewhere=True) if path.exists() else None
    cases = [_case(store, case, costs) for case in run.cases]
    return finish(store, run, cases, tuple(invalid_because(store, run, cases)))


def finish(store: Store, run: Run, cases: Sequence[Case], because: tuple[str, ...]) -> Summary:
    """Writes the summary of cases, and the verdict."""
    run = dataclasses.replace(run, valid=not because, invalid_because=because)
    store.write_run(run)
    summary = Summary(run, tuple(cases), tuple(pool(cases, store.trace)))
    summary.save(store.path / "metrics.json")
    return summary


def _case(store: Store, planned: Planned, costs: Calibration | None) -> Case:
    name, trace, results = planned.name, store.trace(planned.name), store.results(planned.name)
    warmup, plain = store.warmup(name), None
    if name != planned.plain:
        plain = store.trace(planned.plain)
    case = Case(
        **vars(planned),
        metrics=Figures(
            **vars(metrics.figures(trace)),
            compile_s=None if warmup is None else warmup.compile_s,
            compiles_after_warmup=sum(r.compiles for r in results),
        ),
        intervals=metrics.with_intervals(trace),
        compare=None if plain is None else _compare(store, name, trace, plain),
        per_category=by_category(trace, plain),
        wall=wall(results, store.results(planned.plain)),
        depths=_depths(trace),
        experts=store.experts(name),
    )
    if plain is None or costs is None:
        return case
    return dataclasses.replace(case, predicted=predicted(costs, case, trace))


def _depths(trace: Trace) -> tuple[Depth, ...]:
    """tau by the length of the text, where there is more than one step of it."""
    found = by_depth(trace) if trace.about.num_draft else ()
    return found if len(found) > 1 else ()


def by_category(trace: Trace, plain: Trace | None = None) -> dict[str, Category]:
    """Category -> its figures, with the speedup over plain decoding; {} where the set has none."""
    found = {}
    for name, figures in metrics.by_category(trace).items():
        if name:
            both = None if plain is None else metrics.compare(_of(trace, name), _of(plain, name))
            found[name] = Category(**vars(figures), speedup=None if both is None else both.speedup)
    return found


def _of(trace: Trace, category: str) -> Trace:
    rows = [b for b, text in enumerate(trace.texts) if text.category == category]
    return metrics.select(trace, rows)


def _compare(store: Store, name: str, ours: Trace, plain: Trace) -> Comparison:
    """`metrics.compare`, with the margin at the first difference where it was measured."""
    found = metrics.compare(ours, plain)
    several = store.differences(name) or []
    known = [d.margin for d in several if d.margin is not None]
    first = (d.margin for d in several if (d.request, d.token) == found.first_diff)
    largest = max(known, default=None)
    return Comparison(**vars(found), margin_at_diff=next(first, None), largest_margin=largest)


def wall(ours: Sequence[Measurement], plain: Sequence[Measurement]) -> Wall:
    """Whole generations, prefill and the host's work included."""

    def per_token(lines: Sequence[Measurement]) -> dict[int, float]:
        found = {}
        for repeat in sorted({r.repeat for r in lines}):
            same = [r for r in lines if r.repeat == repeat]
            found[repeat] = sum(r.seconds for r in same) / sum(sum(r.tokens) for r in same)
        return found

    mine, theirs = per_token(ours), per_token(plain)
    ratios = tuple(theirs[r] / mine[r] for r in mine if r in theirs)
    each = statistics.median(mine.values())
    return Wall(each, 1 / each, statistics.median(ratios), ratios)


def predicted(costs: Calibration, case: Case, trace: Trace) -> Predicted | None:
    """What the cost model says to the measured acceptance; None where costs are not known."""
    fit, k = [c for c in costs.of(case) if c.batch == case.batch], case.num_draft
    if not fit or case.batch is None:
        return None
    slots = min(max(mean_slots(trace, k), min(c.context for c in fit)), max(c.context for c in fit))
    at = costs_at(fit, batch=case.batch, context=slots)
    if k not in at.verify:
        return None
    return predict_case(case.metrics, at, k, case.speedup, case.experts)


def mean_slots(trace: Trace, k: int) -> int:
    """Slots of the caches, on average over cycles: those of a row on its own (`session.slots`).

    Where rows change hands, those of the longest text so far.
    """
    if trace.about.in_turn:
        return _mean_grown(trace, k)
    total = count = 0
    for row, text in zip(trace.rows, trace.texts):
        longest = len(text.prompt_tokens)
        for cycle in row:
            total += Passes().slots_at(longest, cycle.position, k)
            count += 1
    return round(total / max(count, 1))


def _mean_grown(trace: Trace, k: int) -> int:
    longest = {
        id(cycle): len(text.prompt_tokens)
        for row, text in zip(trace.rows, trace.texts)
        for cycle in row
    }
    # Each call has a state of its own, which begins small.
    call = {
        id(c): b // (AHEAD * (trace.about.batch or 1)) for b, r in enumerate(trace.rows) for c in r
    }
    total, slots_at = 0, Passes().slots_at
    count = slots = at = 0
    for together in passes(trace):
        if call[id(together[0])] != at:
            slots, at = 0, call[id(together[0])]
        slots = max(slots, *(slots_at(longest[id(c)], c.position, k) for c in together))
        total, count = total + slots * len(together), count + len(together)
    return round(total / max(count, 1))


def invalid_because(store: Store, run: Run, cases: Sequence[Case]) -> Iterator[str]:
    """Why the numbers of a run may not be used, a sentence each; none: they may."""
    for case in cases:
        lines = store.results(case.name)
        compiled = [r for r in lines if r.compiles]
        if compiled:
            first = compiled[0]
            yield (
                f"{case.name}: {sum(r.compiles for r in compiled)} programs were compiled "
                f"behind the warm-up, first in batch {first.batch}, repeat {first.repeat}."
            )
        texts: dict[int, set[str]] = {}
        for r in lines:
            texts.setdefault(r.batch, set()).add(r.tokens_sha256)
        if any(len(hashes) > 1 for hashes in texts.values()):
            yield f"{case.name}: its repeats wrote different texts."
    # Elsewhere float32 products may be made of narrower ones.
    if run.dtype == "float32" and run.device.startswith("cpu"):
        for case in cases:
            margin = None if case.compare is None else case.compare.largest_margin
            if case.lossless and margin is not None and abs(margin) > SUSPICIOUS:
                yield (
                    f"{case.name}: the text leaves plain decoding's at a margin of "
                    f"{margin:.3g}, more than rounding explains: it is not the target's."
                )
