"""Texts of prompts, from a command or a file: decoded, shown or written, and measured."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import jax
from rich.console import Console

import specjax
from specjax import api
from specjax.core import hosts, machine
from specjax.core.family import Family
from specjax.core.options import keywords
from specjax.drafters.family import family_of
from specjax.jobs.interrupts import Interrupt
from specjax.jobs.starting import begin, plan
from specjax.jobs.texts import Job, Options, Run
from specjax.jobs.writing import (
    Batch,
    generate_batch,
    generate_in_turn,
    open_console,
    stream_batch,
)
from specjax.lab.costs.experts import can_count, count, has_experts
from specjax.lab.costs.speed import compare, first_difference
from specjax.lab.diagnosis import WARN_BELOW
from specjax.lab.view.summary import Report, summary
from specjax.lab.view.text import Painter
from specjax.sampling import GREEDY_BELOW
from specjax.trace import trace_file

ENOUGH_CYCLES = 32  # of a run, for its tau to mean anything


@dataclasses.dataclass(frozen=True)
class Generated:
    """What came of it."""

    records: list[dict[str, Any]]  # of all prompts: what a line of --output holds
    traces: list[specjax.Trace]  # of what this run decoded, a batch each
    interrupted: bool = False  # a stream, by Ctrl-C
    saved: bool = True  # False: --trace could not be written


@keywords(Options)
def generate(options: Options) -> Generated:
    """Generates texts; shows them, or writes and continues --output, and measures the speedup.

    Raises:
      ValueError, OSError: in one line, before any work, on what cannot be used.
    """
    with begin(options) as (job, run):
        return finish(job, run, open_console())


def finish(job: Job, run: Run | None, console: Console) -> Generated:
    """Everything that a job asks for."""
    options = job.options
    if run is None:
        assert job.results is not None
        say(console, f"{job.results.path} is complete: {len(job.asked)} prompts.")
        for path in filter(None, (options.trace, options.profile_dir)):
            say(console, f"Nothing ran, so {path} is not written; use a new --output.")
        summary(console, Report(records=job.results.records))
        return Generated(job.results.records, [])
    load, others = machine.load(), machine.Others()
    batches = plan(job)
    records, interrupted = decode_all(run, batches, console)
    done = [batch for batch in batches if batch.trace is not None]
    saved = options.trace is None or bool(done and save_trace(run, done, console))
    if options.trace is not None and not done:
        say(console, f"No text was finished, so {options.trace} is not written.")
    made = Generated(records, [b.trace for b in done if b.trace], interrupted, saved)
    if interrupted:
        if records:
            summary(console, Report(records=records))
        return made
    if options.profile_dir is not None:
        profile(options.profile_dir, run, batches[0])
        say(console, f"profile of one generation in {options.profile_dir}")
    try:
        report = measure(run, batches, records)
    except KeyboardInterrupt:  # in the comparison: what is known is said
        summary(console, Report(records=records))
        raise
    summary(console, dataclasses.replace(report, load=load, others=others.cores()))
    committed = [c[2] for record in records for c in record["cycles"]]
    if family_of(run.spec) in (Family.TRAINED, Family.MODEL):  # then near 1 has a cause
        doubt(sum(committed) / len(committed), len(committed), run)
    return made


def decode_all(
    run: Run, batches: list[Batch], console: Console
) -> tuple[list[dict[str, Any]], bool]:
    """Decodes all batches, and shows or writes them: the records, and whether Ctrl-C ended it."""
    job, painter = run.job, Painter(console)
    if job.results is None:
        painter.write_line(painter.legend())
    records = job.results.records if job.results else []
    with Interrupt() if job.options.stream else contextlib.nullcontext() as interrupt:
        for batch in batches:
            for record, index in zip(write(run, batch, painter, interrupt), batch.rows):
                if job.results is None:
                    records.append(record)
                elif index >= len(records):
                    job.results.append(record)
                    tell(job, console)
            if interrupt is not None and interrupt.noted:
                return records, True
    return records, False


def tell(job: Job, console: Console) -> None:
    """Says how many prompts are done, once as many more are as are decoded together."""
    assert job.results is not None
    done, num = len(job.results.records), len(job.asked)
    if done % job.options.together == 0 or done == num:
        say(console, f"{done} of {num} prompts done")


def write(
    run: Run, batch: Batch, painter: Painter, interrupt: Interrupt | None
) -> Iterator[dict[str, Any]]:
    """Decodes a batch, and shows its texts unless they go to a file."""
    options, asked = run.job.options, [run.job.asked[i] for i in batch.rows]
    arguments = {**run.arguments(batch.rows), "details": options.details}
    if interrupt is not None:
        arguments["cycles_per_call"] = options.cycles_per_call
        return stream_batch(batch, run.target, run.spec, painter, arguments, asked[0], interrupt)
    shown = painter if run.job.results is None else None
    if batch.at_once:
        return generate_in_turn(batch, run.target, run.spec, shown, arguments, asked, batch.at_once)
    arguments["host_loop"] = options.host_loop
    size = min(options.batch_size, len(run.prompts))
    return generate_batch(batch, run.target, run.spec, shown, arguments, asked, size)


def save_trace(run: Run, batches: list[Batch], console: Console) -> bool:
    """Writes --trace, and says which prompts it is about where not all. False: it could not."""
    path, first = run.job.options.trace or "", batches[0].rows.start
    trace = specjax.Trace.join([b.trace for b in batches if b.trace])
    try:
        hosts.first_writes("trace", lambda: trace_file.save(trace, path))
    except (OSError, ValueError) as error:  # the texts are there all the same, and their figures
        told = hosts.message_of(error)
        print(f"error: --trace={path} was not written: {told}", file=sys.stderr)
        return False
    if first:
        say(
            console,
            f"{path} holds the traces of prompts {first + 1} to {len(run.prompts)}: those before "
            "were done by an earlier run.",
        )
    return True


def profile(directory: str, run: Run, batch: Batch) -> None:
    """Generates twice more, the second time under the profiler: then all is compiled."""
    arguments = {**run.arguments(batch.some), "host_loop": run.job.options.host_loop}
    specjax.generate(run.target, run.spec, **arguments)
    with jax.profiler.trace(directory), jax.profiler.StepTraceAnnotation("generate"):
        specjax.generate(run.target, run.spec, **arguments)


def measure(run: Run, batches: list[Batch], records: list[dict[str, Any]]) -> Report:
    """Compares with plain decoding on the first batch of this run, if so configured."""
    batch, target, options = batches[0], run.target, run.job.options
    name = run.job.drafter.called(run.spec)
    report = Report(
        records=records,
        setup=f"{name} drafting for {target.name}, {target.stored}, {jax.default_backend()}",
        tokens=sum(len(row) for b in batches for row in b.tokens),
        seconds=sum(b.seconds for b in batches),
        rule=batch.rule,
        drafts=run.job.drafter.name != "none",
        occupancy=batch.occupancy,
        started=None if run.started is None else (run.started.read, run.started.compiled),
    )
    if batch.trace is not None:
        report.lossless = batch.trace.about.lossless
    if not options.compare_plain:
        return report
    arguments = run.arguments(batch.some)

    def speculative() -> api.Output:
        return specjax.generate(target, run.spec, host_loop=options.host_loop, **arguments)

    def plain() -> api.Output:
        asked = {**arguments, "rule": None}
        return specjax.generate(target, None, host_loop=options.host_loop, **asked)

    ours, theirs = speculative(), plain()  # compiles what the first text has not
    report.speed = compare(speculative, plain, repeats=options.repeats)
    report.compile_seconds = (
        batch.compile_seconds + ours.compile_seconds,
        theirs.compile_seconds,
    )
    report.rule = ours.rule
    # Elsewhere speculation draws another text of the same law.
    certain = arguments["temperature"] < GREEDY_BELOW or ours.rule == "coupled"
    report.comparable = certain and report.lossless
    report.difference = first_difference(batch.tokens[: len(batch.some)], theirs.tokens)
    report.exact = target.dtype == "float32" and target.net.memory is None
    # Of rows that began together: those of a pass are then those of one place in the trace.
    if has_experts(target) and can_count(ours.trace):
        report.experts = count(target, ours.trace)
    return report


def doubt(tau: float, cycles: int, run: Run) -> None:
    """Where this run's tau was near 1, says what `specjax.check_drafter` finds."""
    if cycles < ENOUGH_CYCLES or tau >= WARN_BELOW:
        return
    print(f"WARNING: tau {tau:.2f} is near 1; looking for the cause", file=sys.stderr, flush=True)
    print(specjax.check_drafter(run.target, run.spec, prompts=run.prompts[:4]), file=sys.stderr)


def say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False)
