"""Result directories, read back: what a report is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specjax.core.files import read_json
from specjax.lab.costs.calibration import Calibration
from specjax.lab.costs.calibration import load as load_costs
from specjax.lab.costs.pooled import pool
from specjax.lab.view import marks
from specjax.lab.view.cases import Case, best_of
from specjax.lab.view.tables import cases_of
from specjax.trace import trace_file
from specjax.trace.trace import Trace


@dataclasses.dataclass(frozen=True)
class Result:
    """One run, or several of the same prompts."""

    run: Mapping[str, Any]  # run.json
    cases: tuple[Case, ...]
    traces: Mapping[str, Trace]  # of a case by its name; whatever was there
    costs: Calibration | None = None
    pooled: tuple[Case, ...] = ()  # `measure.pooled` of the cases

    @property
    def best(self) -> Case | None:
        """The fastest case that guesses and whose text is the model's; by tau without times."""
        return best_of(self.cases)

    def plain_of(self, case: Case) -> Case | None:
        """Plain decoding of the same prompts, as ``case`` was compared with it."""
        keys = ("prompt_set", "temperature", "batch", "run")
        for other in self.cases:
            same = other["name"] == case.get("plain") or (
                "plain" not in case and all(other.get(k) == case.get(k) for k in keys)
            )
            if other["drafter"] == "none" and same:
                return other
        return None


def read_result(directory: str | Path) -> Result:
    """Reads what a benchmark wrote.

    Raises:
      ValueError: in one line, on a file that is missing, damaged, or of something else.
    """
    path = Path(directory).expanduser()
    metrics = _read(path / "metrics.json")
    run, cases = metrics.get("run"), metrics.get("cases")
    if not isinstance(run, dict) or not isinstance(cases, list) or not cases:
        raise ValueError(f'{path / "metrics.json"} lacks "run" or "cases": not of a benchmark.')
    for i, case in enumerate(cases):
        for key in ("name", "drafter", "metrics"):
            if key not in case:
                raise ValueError(f"{path / 'metrics.json'}: case {i} has no {key!r}.")
    files = {c["name"]: path / "cases" / c["name"] / "trace.jsonl" for c in cases}
    traces = {name: trace_file.load(f) for name, f in files.items() if f.exists()}
    costs = path / "costs.json"
    pooled = metrics.get("pooled")
    if pooled is None and len(traces) == len(cases):  # of an older version
        pooled = pool(cases, traces.__getitem__)
    return Result(
        run,
        tuple(cases),
        traces,
        load_costs(costs, elsewhere=True) if costs.exists() else None,
        tuple(pooled or ()),
    )


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
    first = results[0].run.get("prompts_sha256")
    for directory, result in zip(directories, results):
        other = result.run.get("prompts_sha256")
        if other != first or first is None:
            raise ValueError(
                f"{directories[0]} and {directory} are not comparable: their rendered prompts have "
                f"the hashes {str(first)[:12]} and {str(other)[:12]}; measure both on the same."
            )
    names = [Path(d).resolve().name for d in directories]
    if len(set(names)) < len(names):
        names = [str(d) for d in directories]
    cases: list[Case] = []
    traces: dict[str, Trace] = {}
    pooled: list[Case] = []
    for name, result in zip(names, results):
        pooled += [{**row, **_of_run(row, name)} for row in result.pooled]
        for case in result.cases:
            plain = {"plain": f"{name}/{case['plain']}"} if "plain" in case else {}
            cases.append({**case, **_of_run(case, name), **plain})
            if case["name"] in result.traces:
                traces[f"{name}/{case['name']}"] = result.traces[case["name"]]
    because = [f"{n}: {b}" for n, r in zip(names, results) for b in marks.reasons(r.run)]
    run = {**results[0].run, "runs": names, "valid": not because, "invalid_because": because}
    return Result(run, tuple(cases), traces, pooled=tuple(pooled))


def _of_run(case: Case, name: str) -> dict[str, str]:
    """What a case is called beside those of other runs."""
    shown = "none" if case["drafter"] == "none" else f"{case['drafter']} ({name})"
    return {"name": f"{name}/{case['name']}", "run": name, "drafter": shown}


def from_traces(traces: Mapping[str, Trace]) -> Result:
    """A result of traces alone, by name; the one that guesses nothing is plain decoding.

    Raises:
      ValueError: in one line, where they cannot be compared.
    """
    if not traces:
        raise ValueError("No traces, so there is nothing to report.")
    setup = next(iter(traces.values())).setup
    keys = ("target", "dtype", "device", "versions")
    run = {key: setup[key] for key in keys if key in setup}
    return Result(run, tuple(cases_of(traces)), dict(traces))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; name the directory of a complete benchmark."
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as metrics: {error}.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not of a benchmark.")
    return found
