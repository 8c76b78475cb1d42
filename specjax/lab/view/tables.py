"""The comparison table: methods and cases side by side, one call for every place it goes to."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from specjax.lab.records.case import PLAIN, Case, Comparison, Figures, read_case, write_case
from specjax.lab.records.run import Summary, read_cases
from specjax.lab.view import escape, grid, marks
from specjax.lab.view.cases import fair, method_of, setting_key, setting_of
from specjax.lab.view.grid import Cell, Column, Grid, Group
from specjax.trace.metrics import compare, figures, with_intervals
from specjax.trace.trace import Trace

Cases = Sequence[Case]
SURVIVAL_SHOWN = 4  # positions
COLUMNS = (
    Column("method"),
    Column("k", numeric=True),
    Column("rule"),
    Column("tau", numeric=True),
    Column("survival 1..4", numeric=True, narrow=False),
    Column("tokens/s", numeric=True, narrow=False),
    Column("speedup", numeric=True),
    Column("predicted", numeric=True),
    Column("marks", wraps=True),
)


def table(
    measured: Summary | Mapping[str, Any] | Sequence[Case | Mapping[str, Any]], format: str = "rich"
) -> Any:
    """The comparison table.

    Tau is pooled: committed tokens per target pass, the target's own included. Speedup is the ratio
    of times per token to plain decoding of the same prompts, prefill left out, with its 95 %
    bootstrap interval over requests. The best tau and speedup of each group (prompt set,
    temperature, batch size) are bold; forced acceptance ("synthetic") never is, nor a speedup of at
    most 1. tokens/s is that of each user. Pooled rows come first: each method over all that was
    asked. The marks are those of `specjax.lab.view.marks`.

    Args:
      measured: metrics.json of a benchmark, its "cases", or name -> `Trace`, where the one that
        guesses nothing is plain decoding; as the JSON of the file or as records of it.
      format: "rich" (a table for a console), "markdown", "latex" (needs the package booktabs),
        "html", or "csv" (all figures, full precision).

    Raises:
      ValueError: in one line, for another format, nothing to show, or a case that lacks a figure.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r}: there are {', '.join(FORMATS)}.")
    cases = _cases(measured)
    if not cases:
        raise ValueError("No cases, so there is no table to make.")
    return FORMATS[format](cases)


def _cases(measured: Summary | Mapping[str, Any] | Sequence[Case | Mapping[str, Any]]) -> Cases:
    if isinstance(measured, Summary):
        return measured.rows
    if not isinstance(measured, Mapping):
        return [c if isinstance(c, Case) else read_case(c, str(i)) for i, c in enumerate(measured)]
    if "cases" in measured:
        return read_cases([*(measured.get("pooled") or ()), *measured["cases"]])
    traces = {name: t for name, t in measured.items() if isinstance(t, Trace)}
    if len(traces) < len(measured):
        raise ValueError('A table is made of metrics.json, of its "cases", or of named traces.')
    return cases_of(traces)


def cases_of(traces: Mapping[str, Trace]) -> list[Case]:
    """Traces as cases; speedups where one of them is plain decoding."""
    plain = next((t for t in traces.values() if not any(c.proposed for c in t)), None)
    cases = []
    for name, trace in traces.items():
        about = trace.about
        guesses = any(c.proposed for c in trace)
        found = Figures(**vars(figures(trace)))
        compared = compare(trace, plain) if plain is not None and guesses else None
        cases.append(
            Case(
                name=name,
                drafter=name if guesses else PLAIN,
                num_draft=found.num_draft,
                rule=about.rule or "",
                lossless=about.lossless,
                temperature=about.temperature,
                batch=about.batch,
                metrics=found,
                intervals=with_intervals(trace),
                compare=None if compared is None else Comparison(**vars(compared)),
            )
        )
    return cases


def cells(cases: Cases) -> Grid:
    """The cases as rows of text, grouped by what can be compared."""
    found: dict[tuple[object, ...], list[Case]] = {}
    for case in cases:
        found.setdefault((case.over is None, *setting_key(case)), []).append(case)
    made = []
    for members in found.values():
        able = [c for c in members if fair(c)]
        tau = max((c.metrics.tau for c in able if c.metrics.tau is not None), default=None)
        speedup = max((c.speedup for c in able if c.speedup is not None), default=None)
        rows = tuple(_row(c, tau, speedup) for c in members)
        made.append(Group(setting_of(members[0]), rows))
    return Grid(COLUMNS, tuple(made))


def _row(case: Case, top_tau: float | None, top_speedup: float | None) -> tuple[Cell, ...]:
    found, plain, tau, speedup = case.metrics, case.is_plain, case.metrics.tau, case.speedup
    survival = [s for s in found.survival if s is not None][:SURVIVAL_SHOWN]
    told = None if case.predicted is None else case.predicted.speedup
    return (
        Cell(method_of(case)),
        Cell("" if plain else str(case.num_draft)),
        Cell("" if plain else case.rule),
        Cell(
            _ranged(tau, None if plain else case.intervals.tau),
            fair(case) and tau is not None and tau == top_tau,
        ),
        Cell(" ".join(f"{s:.2f}" for s in survival)),
        Cell("" if not found.tpot_ms else f"{1e3 / found.tpot_ms:,.0f}"),
        Cell(
            "1" if plain else _ranged(speedup, case.speedup_interval, "x"),
            fair(case) and speedup is not None and speedup == top_speedup and speedup > 1,
        ),
        Cell(_ranged(told, None, "x")),
        Cell(marks.words(case)),
    )


def _ranged(value: float | None, ends: tuple[float, float] | None, unit: str = "") -> str:
    if value is None:
        return ""
    return f"{value:.2f}{unit}" + ("" if ends is None else f" [{ends[0]:.2f}, {ends[1]:.2f}]")


def _csv(cases: Cases) -> str:
    """A line a case, a column a figure; lists are spread: survival_1, survival_2, ..."""
    records = []
    fields = ("name", "prompt_set", "drafter", "num_draft", "rule", "temperature", "batch", "mode")
    for case in cases:
        found = write_case(case)
        record = {key: found[key] for key in fields if key in found}
        if case.over is not None:
            record["prompt_set"] = setting_of(case)
        for key in ("metrics", "compare", "predicted"):
            _spread(record, "predicted_" if key == "predicted" else "", found[key] or {})
        known = {k: v for k, v in found["intervals"].items() if v is not None}
        _spread(record, "interval_", known)
        if case.experts is not None:
            record["experts"] = case.experts.distinct[-1]
            record["experts_expected"] = case.experts.expected[-1]
        record["marks"] = marks.words(case)
        records.append({k: escape.csv_cell(v) for k, v in record.items()})
    buffer = io.StringIO()
    names = dict.fromkeys(name for record in records for name in record)
    # A list that is unknown in one case has the columns of its elements in another.
    kept = [name for name in names if f"{name}_1" not in names]
    writer = csv.DictWriter(buffer, kept, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()


def _spread(record: dict[str, Any], prefix: str, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            _spread(record, f"{prefix}{key}_", value)
        elif isinstance(value, list):
            _spread(record, f"{prefix}{key}_", {str(i): v for i, v in enumerate(value, 1)})
        else:
            record[prefix + key] = value


FORMATS: dict[str, Callable[[Cases], Any]] = {
    "rich": cells,
    "markdown": lambda cases: grid.markdown(cells(cases)),
    "latex": lambda cases: grid.latex(cells(cases)),
    "html": lambda cases: grid.html(cells(cases)),
    "csv": _csv,
}
