"""What people read: tables, figures and the page of a run, all from its directory alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specjax.core.files import write_atomically
from specjax.lab.bench import aiperf
from specjax.lab.bench.store import Store, settings_of
from specjax.lab.records.case import Case
from specjax.lab.records.run import Run, Summary
from specjax.lab.view import escape, marks
from specjax.lab.view.headline import headline
from specjax.lab.view.report import write_report
from specjax.lab.view.result import read_results
from specjax.lab.view.tables import table
from specjax.runs.settings import differences

# What must be equal of runs that are compared; the hash last, as the others say why it differs.
SAME = ("template", "system", "thinking", "turns", "prompt_sets", "num_prompts", "prompts_sha256")


def write(store: Store, summary: Summary) -> None:
    """Writes results.csv, .md and .tex, figures/, report.html, and each case's aiperf.jsonl.

    Raises:
      OSError: if they cannot be written.
    """
    tables(store.path, summary)
    for case in summary.cases:
        if case.num_draft and store.has_trace(case.name):
            aiperf.save(store.trace(case.name), store.case(case.name) / "aiperf.jsonl")
    write_report(store.path)


def write_comparison(directories: Sequence[str | Path], summary: Summary, output: Path) -> None:
    """Writes tables and report of several runs, into a directory of its own. Raises OSError."""
    output.mkdir(parents=True, exist_ok=True)
    tables(output, summary)
    write_report(list(directories), output=output)


def tables(path: Path, summary: Summary) -> None:
    """results.csv, .md and .tex: what the run says first, what must stand beside it, the table."""
    first, beside = headline(summary), remarks(summary.run, summary.rows)
    told = [*(escape.markdown(line) + "\n\n" for line in first)]
    told += [f"> {escape.markdown(line)}  \n" for line in beside]
    comments = "".join(f"% {escape.one_line(line)}\n" for line in [*first, *beside])
    for suffix, text in (
        ("csv", table(summary, "csv")),
        ("md", "".join(told) + "\n" + table(summary, "markdown")),
        ("tex", comments + "\n" + table(summary, "latex")),
    ):
        write_atomically(path / f"results.{suffix}", text)


def remarks(run: Run, cases: Sequence[Case]) -> list[str]:
    """What must stand beside every table of cases of a run: its marks, and what it was."""
    thinking = f", {dict(run.thinking)}" if run.thinking else ""
    prompts = f"{run.num_prompts} prompts of {', '.join(run.prompt_sets)}"
    name = "" if run.target is None else run.target.name
    kept = run.dtype
    if len(set(run.stored.values())) > 1:
        each = "; ".join(f"{run}: {how}" for run, how in run.stored.items())
        kept = f"several forms, one run after the other ({each})"
    return [
        *marks.lines(marks.marks(run, cases)),
        *_experts(cases),
        *_shared(cases),
        *_against(run),
        f"{name} in {kept} on {run.device}; {prompts}, template {run.template}{thinking}, "
        f"SHA-256 {(run.prompts_sha256 or '')[:16]}.",
    ]


def _shared(cases: Sequence[Case]) -> list[str]:
    """What batches gave in all: speedups are those of the cycles of a request."""
    each = [
        f"{case.name} {case.wall.tokens_per_s:,.0f} tokens/s ({case.metrics.occupancy:.0%})"
        for case in cases
        if case.wall is not None and case.metrics.occupancy is not None and (case.batch or 1) > 1
    ]
    if not each:
        return []
    return [
        "Of whole batches, prefill and the host's work included (in brackets: the share of the "
        f"rows' cycles that a request used): {', '.join(each)}."
    ]


def _against(run: Run) -> list[str]:
    """What speedups of several runs are over."""
    if not run.runs:
        return []
    return [
        "Each speedup is over plain decoding of its own run, of the same target kept in the same "
        "way; tokens/s tell runs apart. A target kept in fewer bits is another model: its text is "
        "its own."
    ]


def _experts(cases: Sequence[Case]) -> list[str]:
    """What each case's passes read, where the target has experts."""
    read = [(case.name, case.experts) for case in cases if case.experts is not None]
    if not read:
        return []
    each = (f"{name} {u.distinct[-1]:.1f} ({u.expected[-1]:.1f})" for name, u in read)
    return [
        f"Distinct experts a layer and pass, of {read[0][1].num} (in brackets: if tokens chose "
        f"independently): {', '.join(each)}."
    ]


def compare(directories: Sequence[str | Path]) -> Summary:
    """The cases of several complete runs, each with its run's name, in one table.

    Runs on different devices or of different versions may be compared; over different prompts they
    may not.

    Raises:
      ValueError: in one line, on a directory without results, or if the runs did not ask the same
        prompts in the same way.
    """
    if len(directories) < 2:
        raise ValueError("Name at least two runs to compare.")
    runs = [Store(d).read_run() for d in directories]
    for directory, run in zip(directories[1:], runs[1:]):
        for field in SAME:
            both = [settings_of(one, (field,)) for one in (runs[0], run)]
            for found in differences(*both):
                told = found.told(str(directory))
                raise ValueError(f"{directories[0]} and {directory} are not comparable: {told}.")
    return read_results(directories)
