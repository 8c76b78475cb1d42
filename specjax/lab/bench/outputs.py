"""What people read: tables, figures and the page of a run, all from its directory alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specjax.core.files import write_atomically
from specjax.lab.bench import aiperf
from specjax.lab.bench.store import Store
from specjax.lab.view import escape, headline, marks
from specjax.lab.view.report import write_report
from specjax.lab.view.tables import table


def write(store: Store, summary: Mapping[str, Any]) -> None:
    """Writes results.csv, .md and .tex, figures/, report.html, and each case's aiperf.jsonl.

    Raises:
      OSError: if they cannot be written.
    """
    tables(store.path, summary)
    for case in summary["cases"]:
        if case["num_draft"] and store.has_trace(case["name"]):
            aiperf.save(store.trace(case["name"]), store.case(case["name"]) / "aiperf.jsonl")
    write_report(store.path)


def write_comparison(
    directories: Sequence[str | Path], summary: Mapping[str, Any], output: Path
) -> None:
    """The same of several runs, into a directory of its own. Raises OSError."""
    output.mkdir(parents=True, exist_ok=True)
    tables(output, summary)
    write_report(list(directories), output=output)


def tables(path: Path, summary: Mapping[str, Any]) -> None:
    """results.csv, .md and .tex: what the run says first, what must stand beside it, the table."""
    first, beside = headline.of_summary(summary), remarks(summary)
    told = [*(escape.markdown(line) + "\n\n" for line in first)]
    told += [f"> {escape.markdown(line)}  \n" for line in beside]
    comments = "".join(f"% {escape.one_line(line)}\n" for line in [*first, *beside])
    for suffix, text in (
        ("csv", table(summary, "csv")),
        ("md", "".join(told) + "\n" + table(summary, "markdown")),
        ("tex", comments + "\n" + table(summary, "latex")),
    ):
        write_atomically(path / f"results.{suffix}", text)


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """What must stand beside every table of a run: its marks, and what it was."""
    run, cases = summary["run"], [*(summary.get("pooled") or ()), *summary["cases"]]
    thinking = f", {run['thinking']}" if run["thinking"] else ""
    prompts = f"{run['num_prompts']} prompts of {', '.join(run['prompt_sets'])}"
    return [
        *marks.lines(marks.marks(run, cases)),
        f"{run['target']['name']} in {run['dtype']} on {run['device']}; {prompts}, template "
        f"{run['template']}{thinking}, SHA-256 {run['prompts_sha256'][:16]}.",
    ]
