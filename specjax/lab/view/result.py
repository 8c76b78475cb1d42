"""Result directories, read back: what a report is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from specjax.lab.costs.pooled import pool
from specjax.lab.records.case import PLAIN, Case
from specjax.lab.records.costs import Calibration
from specjax.lab.records.costs import load as load_costs
from specjax.lab.records.run import Run, Summary, Target, load_summary
from specjax.lab.view.cases import best_of
from specjax.lab.view.tables import cases_of
from specjax.trace import trace_file
from specjax.trace.trace import Trace


@dataclasses.dataclass(frozen=True)
class Result(Summary):
    """One run, or several of the same prompts, with whatever traces and costs were there."""

    traces: Mapping[str, Trace] = dataclasses.field(default_factory=dict)  # of a case by its name
    costs: Calibration | None = None

    @property
    def best(self) -> Case | None:
        """The fastest case that guesses and whose text is the model's; by tau without times."""
        return best_of(self.cases)

    def plain_of(self, case: Case) -> Case | None:
        """Plain decoding of the same prompts, as ``case`` was compared with it."""

        def setting(c: Case) -> tuple[object, ...]:
            return c.prompt_set, c.temperature, c.batch, c.rows, c.run

        for other in self.cases:
            same = other.name == case.plain or (not case.plain and setting(other) == setting(case))
            if other.is_plain and same:
                return other
        return None


def read_result(directory: str | Path) -> Result:
    """Reads what a benchmark wrote.

    Raises:
      ValueError: in one line, on a file that is missing, damaged, or of something else.
    """
    path = Path(directory).expanduser()
    found = load_summary(path / "metrics.json")
    if not found.cases:
        raise ValueError(f"{path / 'metrics.json'} has no cases: not of a benchmark.")
    files = {c.name: path / "cases" / c.name / "trace.jsonl" for c in found.cases}
    traces = {name: trace_file.load(f) for name, f in files.items() if f.exists()}
    costs, pooled = path / "costs.json", found.pooled
    if not pooled and len(traces) == len(files):  # of an older version
        pooled = tuple(pool(found.cases, traces.__getitem__))
    known = load_costs(costs, elsewhere=True) if costs.exists() else None
    return Result(found.run, found.cases, pooled, traces, known)


def read_results(directories: Sequence[str | Path]) -> Result:
    """Several runs as one; each case is named by its run, too.

    Raises:
      ValueError: in one line, as `read_result` does, or if the prompts of two runs differ.
    """
    if not directories:
        raise ValueError("Name at least one result directory.")
    results = [read_result(d) for d in directories]
    if len(results) == 1:
        return results[0]
    first = results[0].run.prompts_sha256
    for directory, result in zip(directories, results):
        other = result.run.prompts_sha256
        if other != first or first is None:
            raise ValueError(
                f"{directories[0]} and {directory} are not comparable: their rendered prompts have "
                f"the hashes {str(first)[:12]} and {str(other)[:12]}; measure both on the same."
            )
    names = [Path(d).resolve().name for d in directories]
    if len(set(names)) < len(names):
        names = [str(d) for d in directories]
    both = list(zip(names, results))
    because = tuple(f"{name}: {reason}" for name, r in both for reason in r.run.reasons)
    return Result(
        dataclasses.replace(
            results[0].run,
            runs=tuple(names),
            stored={name: r.run.dtype for name, r in both},
            valid=not because,
            invalid_because=because,
        ),
        tuple(_of_run(case, name) for name, r in both for case in r.cases),
        tuple(_of_run(case, name) for name, r in both for case in r.pooled),
        {f"{name}/{case}": trace for name, r in both for case, trace in r.traces.items()},
    )


def _of_run(case: Case, name: str) -> Case:
    """A case as it is called beside those of other runs."""
    return dataclasses.replace(
        case,
        name=f"{name}/{case.name}",
        run=name,
        drafter=PLAIN if case.is_plain else f"{case.drafter} ({name})",
        plain=f"{name}/{case.plain}" if case.plain else "",
    )


def from_traces(traces: Mapping[str, Trace]) -> Result:
    """A result of traces alone, by name; the one that guesses nothing is plain decoding.

    Raises:
      ValueError: in one line, where they cannot be compared.
    """
    if not traces:
        raise ValueError("No traces, so there is nothing to report.")
    about = next(iter(traces.values())).about
    run = Run(
        target=None if about.target is None else Target(about.target),
        dtype=about.dtype,
        device=about.device,
        versions=about.versions,
    )
    return Result(run, tuple(cases_of(traces)), traces=dict(traces))
