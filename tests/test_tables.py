"""The comparison table, alike in every format."""

from __future__ import annotations

import csv
import dataclasses
import io
import re

import made_traces
import pytest
from rich.console import Console

import specjax
from specjax.lab.view import escape, tables
from specjax.trace import metrics

TRACE, PLAIN = made_traces.speculative(), made_traces.plain()


def test_tables_agree_in_every_format() -> None:
    traces = {"plain": PLAIN, "d|f_l": TRACE}
    tau, speedup = TRACE.tau, metrics.compare(TRACE, PLAIN).speedup
    markdown = specjax.table(traces, "markdown").splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in markdown if line.startswith("|")]
    assert len({len(r) for r in rows}) == 1 and len(rows) == 4
    assert rows[3][0].strip() == r"d\|f\_l"
    assert rows[3][3].strip().startswith(f"**{tau:.2f} [") and f"{speedup:.2f}x" in rows[3][6]
    latex = specjax.table(traces, "latex")
    assert r"d\textbar{}f\_l" in latex and rf"\textbf{{{tau:.2f} [" in latex
    body_lines = [
        line for line in latex.splitlines() if line.endswith(r"\\") and "multi" not in line
    ]
    assert {line.count("&") for line in body_lines} == {6}  # no case has a prediction
    assert "predicted" not in latex
    (first, second) = csv.DictReader(io.StringIO(specjax.table(traces, "csv")))
    assert first["drafter"] == "none" and float(second["tau"]) == tau
    assert float(second["speedup"]) == speedup
    assert [float(second[f"survival_{i}"]) for i in range(1, 5)] == TRACE.survival()
    out = io.StringIO()
    Console(file=out, width=200).print(specjax.table(traces))
    assert f"{tau:.2f} [" in out.getvalue() and "d|f_l" in out.getvalue()
    assert f"<b>{tau:.2f}</b>" in specjax.table(traces, "html")


def test_what_is_unknown_has_no_column() -> None:
    """Plain decoding has no rate of acceptance, so no interval of it; the other case has one."""
    text = specjax.table({"plain": PLAIN, "d": TRACE}, "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert "interval_accept_rate_1" in rows[0] and "interval_accept_rate" not in rows[0]
    empty = [name for name in rows[0] if not any(row[name] for row in rows)]
    assert not [name for name in empty if "interval" in name]


@pytest.mark.parametrize(("speedup", "bold"), [(1.25, True), (1.0, False), (0.8, False)])
def test_a_speedup_that_is_none_is_never_the_best(speedup: float, bold: bool) -> None:
    plain, ours = tables.cases_of({"plain": PLAIN, "a": TRACE})
    assert ours.compare is not None
    compared = dataclasses.replace(ours.compare, speedup=speedup)
    changed = dataclasses.replace(ours, compare=compared)
    (group,) = tables.cells([plain, changed]).groups
    assert [row[6].best for row in group.rows] == [False, bold]
    assert (f"**{speedup:.2f}x" in specjax.table([plain, changed], "markdown")) is bold


def test_a_forced_acceptance_is_never_the_best() -> None:
    ours = tables.cases_of({"plain": PLAIN, "a": TRACE})[1]
    best = dataclasses.replace(
        ours, name="b", mode="synthetic", metrics=dataclasses.replace(ours.metrics, tau=9.0)
    )
    (group,) = tables.cells([ours, best]).groups
    assert [row[3].best for row in group.rows] == [True, False]
    assert "synthetic" in group.rows[1][0].text


def test_numbers_stay_numbers() -> None:
    for number in (-1.5, 0, True, None):
        assert escape.csv_cell(number) is number
    for text in ("=1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", " =1", "\uff1d1", "a\tb"[1:]):
        assert escape.csv_cell(text) == "'" + text
    for text in ("a=1", "1-2", "demo:dflash", ""):
        assert escape.csv_cell(text) == text
