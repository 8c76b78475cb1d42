"""What people read: tables, figures and the page of a run, all from its directory alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specjax.bench.store import Store
from specjax.bench.synthetic import NOT_THE_MODELS
from specjax.core.files import write_atomically
from specjax.measure import aiperf
from specjax.view.report import write_report
from specjax.view.tables import is_synthetic, table

BUSY = 0.5  # processes of others, on average, from where times are not to be trusted

# Suffix -> (format of the table, what begins a remark; None: the file holds figures alone).
_FILES: dict[str, tuple[str, str | None]] = {
    "csv": ("csv", None),
    "md": ("markdown", "> "),
    "tex": ("latex", "% "),
}


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
    """results.csv, .md and .tex."""
    for suffix, (form, sign) in _FILES.items():
        head = "" if sign is None else "".join(f"{sign}{line}\n" for line in remarks(summary))
        body = str(table(summary, form))
        write_atomically(path / f"results.{suffix}", head + "\n" * bool(head) + body)


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """What must stand beside every table of a run."""
    run = summary["run"]
    lines = [f"Not valid: {reason}" for reason in run["invalid_because"]]
    if any(map(is_synthetic, summary["cases"])):
        lines.append(f"Synthetic: {NOT_THE_MODELS}.")
    if run["mode"] == "replay":
        lines.append("Replayed from recorded greedy texts: tau is exact, times were not measured.")
    busy, timed = max(run.get("load", ()), default=0.0), run["mode"] != "replay"
    if busy > BUSY and timed:
        lines.append(f"The machine was not idle (load {busy:g} before): times are rough.")
    thinking = f", {run['thinking']}" if run["thinking"] else ""
    prompts = f"{run['num_prompts']} prompts of {', '.join(run['prompt_sets'])}"
    if run["left_out"]:
        prompts += f" ({run['left_out']} longer ones were left out)"
    lines.append(
        f"{run['target']['name']} in {run['dtype']} on {run['device']}; {prompts}, template "
        f"{run['template']}{thinking}, SHA-256 {run['prompts_sha256'][:16]}."
    )
    return lines
