"""Which figures a report has, from what was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specjax.lab.records.case import Case
from specjax.lab.records.costs import Costs, costs_at
from specjax.lab.view import figures as draw
from specjax.lab.view.acceptance import MOST_GROUPS, categories
from specjax.lab.view.cases import method_of, series_name, setting_key, setting_of
from specjax.lab.view.heat import by_class, heat_size
from specjax.lab.view.palette import MARKERS
from specjax.lab.view.result import Result
from specjax.lab.view.style import quietly, style
from specjax.lab.view.timeline import seen_share
from specjax.trace.depth import by_depth
from specjax.trace.trace import Trace


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure of a report, drawn when asked for."""

    name: str  # of its files
    title: str
    caption: str
    draw: Callable[..., Axes]  # of figures.py, all but ``ax`` given
    size: tuple[float, float] = (6.4, 3.6)

    def figure(self, *, dark: bool = False) -> Figure:
        """The drawn figure."""
        with style(dark=dark), quietly():
            figure = Figure(figsize=self.size, layout="constrained")
            self.draw(ax=figure.subplots())
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # it is settled: no file needs another
        return figure


def pictures(result: Result) -> list[Picture]:
    """What can be drawn of a result, the most telling first."""
    best = result.best
    made = [*_speedups(result), *_frontier(result), *_acceptance(result), *_depth(result)]
    if best is not None and best.name in result.traces:
        made += _of_one(result, best)
    return made


def _speedups(result: Result) -> list[Picture]:
    """Speedup against k, of each drafter and setting that was measured at two k or more."""
    made: list[Picture] = []

    groups: dict[tuple[object, ...], list[Case]] = {}
    for case in result.cases:
        if case.speedup is not None:
            key = (*setting_key(case), method_of(case), case.rule)
            groups.setdefault(key, []).append(case)
    for group in groups.values():
        cases = sorted(group, key=lambda c: c.num_draft)
        if len({c.num_draft for c in cases}) < 2:
            continue
        points = [
            draw.Point(c.num_draft, c.speedup, low, high, c.metrics.tau)
            for c in cases
            for low, high in [c.speedup_interval or (None, None)]
            if c.speedup is not None
        ]
        told = cases[-1].predicted
        prediction = None if told is None else told.curve
        ranged = any(p.low is not None for p in points)
        interval = ", with 95 % bootstrap intervals over requests" * ranged
        head = f"{method_of(cases[0])}, rule {cases[0].rule}, {setting_of(cases[0])}"
        made.append(
            Picture(
                f"speedup_{len(made) + 1}",
                f"Speedup against k: {head}",
                f"Dots are measured{interval}. "
                + (
                    "The solid line is predicted from the survival curve of the largest k, cut off "
                    "at smaller ones, and the calibrated costs; the dashed one from a single alpha "
                    "with the same costs. tau is what the speedup would be if drafting and "
                    "verifying cost nothing."
                    if prediction
                    else "tau is what the speedup would be if guesses cost nothing."
                ),
                partial(draw.plot_speedup, points, prediction=prediction),
            )
        )
    return made


def _frontier(result: Result) -> list[Picture]:
    """Throughput against speed per user, of each prompt set and temperature with two batches."""
    made: list[Picture] = []
    timed = [c for c in result.cases if c.metrics.tpot_ms and c.batch]
    for where in dict.fromkeys((c.prompt_set, c.temperature) for c in timed):
        cases = [c for c in timed if (c.prompt_set, c.temperature) == where]
        if len({c.batch for c in cases}) < 2:
            continue
        wanted = sorted(
            {series_name(c) for c in cases if c.drafter != "none"},
            key=lambda name: -max(c.speedup or 0.0 for c in cases if series_name(c) == name),
        )[: len(MARKERS)]
        loads = [
            draw.Load(
                "plain" if c.drafter == "none" else series_name(c), c.batch, 1e3 / c.metrics.tpot_ms
            )
            for c in cases
            if c.batch and c.metrics.tpot_ms
            if c.drafter == "none" or series_name(c) in wanted
        ]
        made.append(
            Picture(
                f"frontier_{len(made) + 1}",
                "Throughput against speed: "
                + setting_of(dataclasses.replace(cases[0], batch=None)),
                "Each dot is a batch size: how fast each user's text comes, and how many tokens a "
                "second all of them get (batch times that, while all rows are at work). Up and to "
                f"the right is better.{' The five fastest settings.' * (len(wanted) == 5)}",
                partial(draw.plot_frontier, loads),
            )
        )
    return made


def _alike(result: Result, best: Case) -> list[Case]:
    """The cases that share the best one's setting: of each drafter and rule the best k."""
    alike = [
        c
        for c in result.cases
        if c.drafter != "none"
        and setting_key(c) == setting_key(best)
        and c.name in result.traces
        and c.metrics.survival  # a lookup may have guessed nothing
    ]
    alike.sort(key=lambda c: -(c.speedup or c.metrics.tau or 0.0))
    kinds: dict[tuple[object, object], Case] = {}
    for case in alike:
        kinds.setdefault((method_of(case), case.rule), case)
    return list(kinds.values())[:MOST_GROUPS]


def _named(result: Result, chosen: Sequence[Case]) -> dict[str, Trace]:
    """Their traces."""
    names = [series_name(c) for c in chosen]
    if len(set(names)) < len(names):
        names = [f"{n}, {c.rule}" for n, c in zip(names, chosen)]
    return {n: result.traces[c.name] for n, c in zip(names, chosen)}


def _depth(result: Result) -> list[Picture]:
    """tau by the length of the text, of runs whose texts grow past the first step."""
    best = result.best
    chosen = [] if best is None else _alike(result, best)
    traces = _named(result, chosen)
    if best is None or not any(len(by_depth(t, resamples=1)) > 1 for t in traces.values()):
        return []
    return [
        Picture(
            "depth",
            f"tau by position: {setting_of(best)}",
            "tau of the cycles behind so many tokens, the prompt included; each step of the axis "
            "is twice as long. Vertical lines: 95 % bootstrap intervals over the requests that "
            "reached so far.",
            partial(draw.plot_depth, traces),
        )
    ]


def _acceptance(result: Result) -> list[Picture]:
    """Survival of the cases that share the best one's setting, and of its prompts' categories."""
    best = result.best
    chosen = [] if best is None else _alike(result, best)
    if best is None or not chosen:
        return []
    traces = _named(result, chosen)
    made = [
        Picture(
            "acceptance",
            f"Acceptance by position: {setting_of(best)}",
            "Bars: survival, the share of target passes that accepted at least so many guesses. "
            "Dots: conditional, the same of those that accepted the guess before. Vertical lines: "
            "95 % bootstrap intervals over requests.",
            partial(draw.plot_acceptance, traces),
        )
    ]
    groups = categories(result.traces[best.name]) if best in chosen else {}
    if 2 <= len(groups) <= MOST_GROUPS:
        made.append(
            Picture(
                "acceptance_by_category",
                f"The same by category: {series_name(best)}",
                "How much acceptance depends on what is asked.",
                partial(draw.plot_acceptance, groups),
            )
        )
    return made


def _of_one(result: Result, best: Case) -> Sequence[Picture]:
    """The timeline and the heat map of the best case's longest text."""
    trace = result.traces[best.name]
    row = longest_row(trace.rows)
    if not trace.rows[row]:
        return []
    made = []
    plain = result.plain_of(best)
    theirs = result.traces.get(plain.name) if plain is not None else None
    if all(c.end == c.end for c in trace.rows[row]):
        costs = costs_of(result, best)
        drafts = seen_share(costs, best.num_draft) > 0
        lanes = 1 + drafts + (theirs is not None)
        told = "A compiled loop does not tell how a cycle divides: see the calibration for that."
        if costs is not None:
            told = "Drafting takes too little of a cycle to be drawn."
        if drafts:
            told = (
                "Each cycle's recorded time is divided into drafting and verifying as calibrated."
            )
        made.append(
            Picture(
                "timeline",
                f"Timeline: {series_name(best)}",
                f"The first cycles of request {row}, on the clock. {told} Numbers are the tokens "
                "that the cycle committed.",
                partial(draw.plot_timeline, trace, row, costs=costs, plain=theirs),
                (6.4, 1.3 + 0.45 * lanes),
            )
        )
    made.append(
        Picture(
            "heat",
            f"Where it flies and where it crawls: {series_name(best)}",
            f"The text of request {row}; the ground of each token is the tau around it.",
            partial(draw.plot_heat, trace, row),
            heat_size(trace, row),
        )
    )
    kinds = len(by_class(trace))
    if trace.texts and kinds > 1:
        made.append(
            Picture(
                "classes",
                f"What is easy to guess: {series_name(best)}",
                "Of all tokens of a kind in the generated texts, how many were accepted guesses.",
                partial(draw.plot_classes, trace),
                (6.4, 0.9 + 0.3 * kinds),
            )
        )
    return made


def longest_row(rows: Sequence[Sequence[object]]) -> int:
    """The row of the most cycles, the first of equals."""
    return max(range(len(rows)), key=lambda b: len(rows[b]), default=0)


def costs_of(result: Result, case: Case) -> Costs | None:
    """What this case's cycles cost, if calibrated; at the length that its prediction is for."""
    if result.costs is None:
        return None
    k, told = case.num_draft, case.predicted
    rule = case.rule.removeprefix("synthetic-")
    fit = [
        c
        for c in result.costs.costs
        if (c.drafter, c.batch, c.temperature) == (case.drafter, case.batch, case.temperature)
        and c.rule in ("", rule)
        and k in c.draft
        and k in c.verify
    ]
    if not fit or told is None or case.batch is None:
        return min(fit, key=lambda c: c.context, default=None)
    return costs_at(fit, batch=case.batch, context=told.context)
