"""Reports of runs and of traces: names that are shown and never obeyed, and bad input."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from pathlib import Path

import made_traces
import pytest
from page_reader import Reader
from rich.console import Console
from scripts import invoke, script

import specjax
from specjax.jobs import reporting
from specjax.lab.view import figures, gallery, tables
from specjax.lab.view.report import page, report_traces, write_report
from specjax.lab.view.result import Result, from_traces, read_results
from specjax.trace import metrics, trace_file
from specjax.trace.trace import Trace

TRACE, PLAIN = made_traces.speculative(), made_traces.plain()


def test_reports_of_directories_and_of_traces(tmp_path: Path) -> None:
    """That of the directory is written with all figures, the others as pages alone."""
    a = made_traces.result_directory(tmp_path / "a", compiles=1)
    whole = write_report(a).read_text()
    Reader(whole)
    assert "1 programs were compiled behind" in whole and "These numbers are not valid" in whole
    assert "Speedup if one factor were perfect" in whole  # explained in words
    assert all(key in whole for key in metrics.METRICS)
    assert {p.suffix for p in (a / "figures").iterdir()} == {".png", ".svg"}
    b = made_traces.result_directory(tmp_path / "b")
    both = page(read_results([a, b]), [])
    assert "dflash (a)" in both and "dflash (b)" in both
    c = made_traces.result_directory(tmp_path / "c", prompts="cd" * 32)
    with pytest.raises(ValueError, match=r"not comparable: their rendered prompts.*abab.*cdcd"):
        write_report([a, c])
    alone = page(from_traces({"plain": PLAIN, "dflash": TRACE}), [])
    assert "2.00x" in alone and "Race" in alone


def test_what_guessed_nothing_has_no_picture_of_acceptance() -> None:
    """A lookup in texts that repeat nothing, alone or beside others; the rest is drawn."""
    both = from_traces({"plain": PLAIN, "dflash": TRACE, "lookup": TRACE})

    def without(*names: str) -> Result:
        cases = tuple(
            dataclasses.replace(c, metrics=dataclasses.replace(c.metrics, survival=()))
            if c.name in names
            else c
            for c in both.cases
        )
        traces = {n: PLAIN if n in names else t for n, t in both.traces.items()}
        return dataclasses.replace(both, cases=cases, traces=traces)

    for result, drawn in ((without("dflash", "lookup"), False), (without("lookup"), True)):
        shown = gallery.pictures(result)
        assert ("acceptance" in {p.name for p in shown}) == drawn
        for picture in shown:
            assert picture.figure().axes


HOSTILE = "=cmd|' /C'!A0\n`x` <b>*[a](http://x)*</b> \x1b[31m[red]"


def test_names_are_shown_and_never_obeyed() -> None:
    """In every format: a name that is a formula, markup, HTML, or steers a terminal."""
    ours = tables.cases_of({"plain": PLAIN, "a": TRACE})[1]
    case = dataclasses.replace(ours, name="-1+1", drafter=HOSTILE, prompt_set="\t@sum", rule="1.5")
    (row,) = csv.DictReader(io.StringIO(specjax.table([case], "csv")))
    assert row["name"] == "'-1+1" and row["drafter"] == f"'{HOSTILE}"
    assert row["prompt_set"] == "'\t@sum" and row["rule"] == "1.5"
    assert float(row["speedup"]) == case.speedup
    lines = [x for x in specjax.table([case], "markdown").splitlines() if x.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {
        len(tables.cells([case]).filled) + 1
    }
    assert r"\`x\` \<b>\*[a\](http://x)\*\</b>" in lines[-1] and "\x1b" not in lines[-1]
    latex = specjax.table([case], "latex")
    assert "textless{}b" in latex and latex.count("\n") == 8
    page = specjax.table([case], "html")
    assert "&lt;b&gt;" in page and "<b>*" not in page
    out = io.StringIO()
    Console(file=out, width=200).print(specjax.table([case]))
    assert "[red]" in out.getvalue() and "\x1b" not in out.getvalue()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: specjax.show(TRACE, 2), "row=2: the trace has 2 rows"),
        (lambda: specjax.plot_acceptance(PLAIN), "Nothing was guessed"),
        (lambda: specjax.plot_speedup({4: TRACE}), "needs the trace of plain decoding"),
        (lambda: specjax.plot_speedup({}), "No runs"),
        (lambda: specjax.plot_timeline(TRACE, first=99), "first=99"),
        (lambda: specjax.plot_heat(TRACE, window=0), "window=0"),
        (lambda: specjax.race(TRACE, Trace(PLAIN.rows[:1]), 1), "row=1"),
        (lambda: specjax.race(TRACE, Trace(PLAIN.rows)), "another prompt"),
        (lambda: specjax.table({}), "No cases"),
        (lambda: specjax.table([{"name": "x"}]), "Case x has no 'drafter'"),
        (lambda: specjax.table({"a": PLAIN}, "word"), "format='word'"),
        (lambda: figures.plot_frontier([]), "No measured speeds"),
        (lambda: write_report("/nowhere"), "no such file; name the directory"),
        (lambda: report_traces({}, "/tmp"), "No traces"),
    ],
)
def test_bad_input_is_one_line(draw, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        draw()
    assert "\n" not in str(error.value)


def test_the_script_refuses_in_one_line_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "cut.jsonl"
    trace_file.save(TRACE, cut)
    cut.write_text("\n".join(cut.read_text().splitlines()[:4]) + "\n")
    module = script("report")
    # What is drawn is tested above.
    monkeypatch.setattr(reporting, "report_traces", lambda traces, output: list(traces))
    for arguments, told in (
        ((), "name either --run directories or --trace files"),
        (("--run=/nowhere",), "no such file; name the directory of a complete benchmark"),
        (("--run=a", "--plain=b"), "--plain goes with --trace"),
        ((f"--trace={cut}",), "--trace needs --output"),
        ((f"--trace={cut}", "--output=x"), "was cut"),
    ):
        status, _, err = invoke(module, capsys, "report", *arguments)
        assert status == 2 and told in err and err.count("\n") == 1
    good = [tmp_path / f"{name}.jsonl" for name in ("plain", "dflash")]
    for path, trace in zip(good, (PLAIN, TRACE)):
        trace_file.save(trace, path)
    given = (f"--trace={good[1]}", f"--plain={good[0]}", "--output=x")
    assert invoke(module, capsys, "report", *given)[:2] == (0, "['plain', 'dflash']\n")
