"""Several runs in one table, if they asked the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specjax.lab.bench.store import Record, Store, difference
from specjax.lab.view.result import read_results

# What must be equal; the hash last, as the others say why it differs.
SAME = ("template", "system", "thinking", "turns", "prompt_sets", "num_prompts", "prompts_sha256")


def compare(directories: Sequence[str | Path]) -> Record:
    """The cases of several complete runs, each with its run's name, as one metrics.json.

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
            if runs[0].get(field) != run.get(field):
                told = difference(field, runs[0], run, who=str(directory))
                raise ValueError(f"{directories[0]} and {directory} are not comparable: {told}.")
    result = read_results(directories)
    return {
        "run": dict(result.run),
        "pooled": list(result.pooled),
        "cases": list(result.cases),
    }
