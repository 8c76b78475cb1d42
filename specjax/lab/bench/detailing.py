"""Probabilities for traces: each case once more, untimed, with `specjax.generate(details=True)`.

They cost a softmax a cycle, so that what is timed does without. Texts are those of the timed runs;
where rounding in the other program made a row's cycles differ, that row stays without.
"""

from __future__ import annotations

import dataclasses

from specjax.lab.bench.job import Job
from specjax.lab.bench.measure import Batch, Report, asked_by, batches_of, generate
from specjax.lab.bench.plan import Case
from specjax.lab.bench.store import Store
from specjax.trace import trace_file
from specjax.trace.trace import Cycle, Trace


def add_details(job: Job, store: Store, report: Report = lambda *_: None) -> None:
    """Completes the trace of every case that guesses; what is there is not made again."""
    work: list[tuple[Case, list[Batch]]] = []
    for group in job.groups:
        batches = batches_of(asked_by(group, job.prompts), group.batch)
        for case in group.cases:
            if case.num_draft and not has_details(store.trace(case.name)):
                work.append((case, batches))
    total, made = sum(len(batches) for _, batches in work), 0
    for case, batches in work:
        folder = store.case(case.name) / "details"
        folder.mkdir(exist_ok=True)
        paths = [folder / f"{batch.index:04d}.jsonl" for batch in batches]
        for batch, path in zip(batches, paths):
            if not path.exists():
                out = generate(job.target, job.suite, case, batch, details=True)
                rows = out.trace.rows[: len(batch.prompts)]
                trace_file.save(Trace(rows, setup=out.trace.setup), path)
            made += 1
            report(f"probabilities of {case.name}", made, total)
        detailed = Trace.join([trace_file.load(path) for path in paths])
        store.complete(case.name, merge(store.trace(case.name), detailed))
        for path in paths:
            path.unlink()
        folder.rmdir()


def has_details(trace: Trace) -> bool:
    return any(cycle.detail is not None for cycle in trace)


def merge(timed: Trace, detailed: Trace) -> Trace:
    """The times of one with the probabilities of the other, row by row."""

    def row(mine: tuple[Cycle, ...], other: tuple[Cycle, ...]) -> tuple[Cycle, ...]:
        if tuple(dataclasses.replace(c, detail=None) for c in other) != mine:
            return mine
        return tuple(dataclasses.replace(a, detail=b.detail) for a, b in zip(mine, other))

    rows = tuple(row(a, b) for a, b in zip(timed.rows, detailed.rows, strict=True))
    return dataclasses.replace(timed, rows=rows)
