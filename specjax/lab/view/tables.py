"""The comparison table: methods and cases side by side, one call for every place it goes to."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions
from rich.table import Table as RichTable

from specjax.lab.costs import predicted
from specjax.lab.view import escape, marks
from specjax.lab.view.cases import (
    Case,
    fair,
    interval_of,
    is_plain,
    method_of,
    setting_key,
    setting_of,
    speedup_of,
    tau_of,
)
from specjax.trace.metrics import compare, figures, with_intervals
from specjax.trace.trace import Trace

Cases = Sequence[Case]
SURVIVAL_SHOWN = 4  # positions
WIDE = 120  # characters of a terminal, from where all columns are shown


@dataclasses.dataclass(frozen=True)
class Cell:
    """What stands in a table, and whether it is the best of its group."""

    text: str
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Group:
    """Cases that can be compared: of one prompt set, temperature and batch size, or pooled."""

    title: str
    rows: tuple[tuple[Cell, ...], ...]


# Those that no case has anything for are left out.
COLUMNS = (
    *("method", "k", "rule", "tau", "survival 1..4", "tokens/s", "speedup", "predicted"),
    "marks",
)
NUMERIC = (False, True, False, True, True, True, True, True, False)


def table(measured: Mapping[str, Any] | Cases, format: str = "rich") -> Any:
    """The comparison table.

    Tau is pooled: committed tokens per target pass, the target's own included. Speedup is the ratio
    of times per token to plain decoding of the same prompts, prefill left out, with its 95 %
    bootstrap interval over requests. The best tau and speedup of each group (prompt set,
    temperature, batch size) are bold; forced acceptance ("synthetic") never is, nor a speedup of at
    most 1. tokens/s is that of each user. Pooled rows come first: each method over all that was
    asked. The marks are those of `specjax.lab.view.marks`.

    Args:
      measured: metrics.json of a benchmark, its "cases", or name -> `Trace`, where the one that
        guesses nothing is plain decoding.
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
    for i, case in enumerate(cases):
        for key in ("name", "drafter", "metrics"):
            if key not in case:
                raise ValueError(f"Case {case.get('name', i)} has no {key!r}: not of metrics.json.")
    return FORMATS[format](cases)


def _cases(measured: Mapping[str, Any] | Cases) -> Cases:
    if not isinstance(measured, Mapping):
        return measured
    if "cases" in measured:
        return [*(measured.get("pooled") or ()), *measured["cases"]]
    traces = {name: t for name, t in measured.items() if isinstance(t, Trace)}
    if len(traces) < len(measured):
        raise ValueError('A table is made of metrics.json, of its "cases", or of named traces.')
    return cases_of(traces)


def cases_of(traces: Mapping[str, Trace]) -> list[dict[str, Any]]:
    """Traces as the cases of metrics.json; speedups where one of them is plain decoding."""
    plain = next((t for t in traces.values() if not any(c.proposed for c in t)), None)
    cases = []
    for name, trace in traces.items():
        options = trace.setup.get("options")
        is_plain = not any(c.proposed for c in trace)
        cases.append(
            {
                "name": name,
                "drafter": "none" if is_plain else name,
                "num_draft": figures(trace)["num_draft"],
                "rule": trace.setup.get("rule", ""),
                "lossless": trace.setup.get("lossless", True),
                "temperature": options.get("temperature") if isinstance(options, Mapping) else None,
                "batch": trace.setup.get("batch"),
                "metrics": figures(trace),
                "intervals": with_intervals(trace),
                "compare": compare(trace, plain) if plain is not None and not is_plain else None,
            }
        )
    return cases


def filled(several: Sequence[Group]) -> list[int]:
    """The columns that some row has something for."""
    rows = [row for group in several for row in group.rows]
    return [i for i in range(len(COLUMNS)) if any(row[i].text for row in rows)]


def groups(cases: Cases) -> list[Group]:
    """The cases as rows of text, grouped by what can be compared."""
    found: dict[tuple[Any, ...], list[Case]] = {}
    for case in cases:
        found.setdefault((case.get("over") is None, *setting_key(case)), []).append(case)
    made = []
    for members in found.values():
        top = {
            key: max((v for c in members if (v := value(c)) is not None and fair(c)), default=None)
            for key, value in (("tau", tau_of), ("speedup", speedup_of))
        }
        made.append(Group(setting_of(members[0]), tuple(_row(c, top) for c in members)))
    return made


def _row(case: Case, top: Mapping[str, float | None]) -> tuple[Cell, ...]:
    found, intervals = case["metrics"], case.get("intervals") or {}
    tau, speedup, plain = tau_of(case), speedup_of(case), is_plain(case)
    survival = [s for s in found.get("survival") or () if s is not None][:SURVIVAL_SHOWN]
    told, tpot = predicted.read(case), found.get("tpot_ms")
    return (
        Cell(method_of(case)),
        Cell("" if plain else str(case.get("num_draft", ""))),
        Cell("" if plain else str(case.get("rule", ""))),
        Cell(
            _ranged(tau, None if plain else intervals.get("tau")),
            fair(case) and tau is not None and tau == top["tau"],
        ),
        Cell(" ".join(f"{s:.2f}" for s in survival)),
        Cell("" if not tpot else f"{1e3 / tpot:,.0f}"),
        Cell(
            "1" if plain else _ranged(speedup, interval_of(case), "x"),
            fair(case) and speedup is not None and speedup == top["speedup"] and speedup > 1,
        ),
        Cell(_ranged(None if told is None else told.speedup, None, "x")),
        Cell(marks.words(case)),
    )


def _ranged(value: float | None, ends: Sequence[float] | None, unit: str = "") -> str:
    if value is None:
        return ""
    return f"{value:.2f}{unit}" + ("" if ends is None else f" [{ends[0]:.2f}, {ends[1]:.2f}]")


@dataclasses.dataclass(frozen=True)
class _Rich:
    """A table a group, on a console: columns alike where it is wide enough, else wrapped."""

    groups: Sequence[Group]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RichTable]:
        kept = filled(self.groups)
        if options.max_width < WIDE:
            kept = [i for i in kept if COLUMNS[i] not in ("survival 1..4", "tokens/s")]
        rows = [row for group in self.groups for row in group.rows]
        widths = [max(len(COLUMNS[i]), *(len(row[i].text) for row in rows)) for i in kept]
        numbers = sum(w for i, w in zip(kept, widths) if COLUMNS[i] != "marks")
        fits = numbers + 3 * len(kept) + 20 <= options.max_width  # 20: for marks, which may wrap
        for group in self.groups:
            title = escape.rich(group.title) if group.title else None
            made = RichTable(title=title, title_justify="left", title_style="dim", box=SIMPLE_HEAD)
            for i, width in zip(kept, widths):
                made.add_column(
                    COLUMNS[i],
                    justify="right" if NUMERIC[i] else "left",
                    overflow="fold",
                    no_wrap=i == 0,
                    min_width=width if fits and COLUMNS[i] != "marks" else None,
                )
            for row in group.rows:
                texts = [(escape.rich(row[i].text), row[i].best) for i in kept]
                made.add_row(*(f"[bold]{text}[/bold]" if best else text for text, best in texts))
            yield made


def _rich(cases: Cases) -> _Rich:
    return _Rich(groups(cases))


def _markdown(cases: Cases) -> str:
    several = groups(cases)
    kept = filled(several)
    rule = " | ".join("---:" if NUMERIC[i] else "---" for i in kept)
    blocks = []
    for group in several:
        lines = [f"**{escape.markdown(group.title)}**\n"] if group.title else []
        lines += [f"| {' | '.join(COLUMNS[i] for i in kept)} |", f"| {rule} |"]
        for row in group.rows:
            cells = [(escape.markdown(row[i].text), row[i].best) for i in kept]
            texts = [f"**{text}**" if best else text for text, best in cells]
            lines.append(f"| {' | '.join(texts)} |")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _latex(cases: Cases) -> str:
    several = groups(cases)
    kept = filled(several)
    columns = "".join("r" if NUMERIC[i] else "l" for i in kept)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines.append(" & ".join(escape.tex(COLUMNS[i]) for i in kept) + r" \\")
    for group in several:
        lines.append(r"\midrule")
        if group.title:
            title = rf"\emph{{{escape.tex(group.title)}}}"
            lines.append(rf"\multicolumn{{{len(kept)}}}{{l}}{{{title}}} \\")
        for row in group.rows:
            cells = [(escape.tex(row[i].text), row[i].best) for i in kept]
            texts = [rf"\textbf{{{text}}}" if best else text for text, best in cells]
            lines.append(" & ".join(texts) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _html(cases: Cases) -> str:
    several = groups(cases)
    kept = filled(several)
    kinds = ["num" if right else "" for right in NUMERIC]
    head = "".join(f'<th class="{kinds[i]}">{html.escape(COLUMNS[i])}</th>' for i in kept)
    parts = []
    for group in several:
        if group.title:
            title = html.escape(group.title)
            parts.append(f'<tr class="g"><th colspan="{len(kept)}">{title}</th></tr>')
        for row in group.rows:
            cells = "".join(f'<td class="{kinds[i]}">{_html_cell(row[i])}</td>' for i in kept)
            parts.append(f"<tr>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(parts)}</tbody></table>"


def _html_cell(cell: Cell) -> str:
    text = html.escape(cell.text)
    value, bracket, ends = text.partition(" [")
    small = f' <span class="iv">[{ends}</span>' if bracket else ""
    return (f"<b>{value}</b>" if cell.best else value) + small


def _csv(cases: Cases) -> str:
    """A line a case, a column a figure; lists are spread: survival_1, survival_2, ..."""
    records = []
    fields = ("name", "prompt_set", "drafter", "num_draft", "rule", "temperature", "batch", "mode")
    for case in cases:
        record = {key: case[key] for key in fields if key in case}
        if case.get("over") is not None:
            record["prompt_set"] = setting_of(case)
        for key in ("metrics", "compare", "predicted"):
            _spread(record, "predicted_" if key == "predicted" else "", case.get(key) or {})
        known = {k: v for k, v in (case.get("intervals") or {}).items() if v is not None}
        _spread(record, "interval_", known)
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
    "rich": _rich,
    "markdown": _markdown,
    "latex": _latex,
    "html": _html,
    "csv": _csv,
}
