"""How texts begin: weights are read while the programs that need them are compiled."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import specjax
from specjax.checkpoint.assemble import outlined
from specjax.core import hosts
from specjax.core.ahead import Ahead
from specjax.jobs.texts import Job, Options, Run, Started, read_job
from specjax.jobs.writing import Batch
from specjax.prompts.ids import PlainTextWarning
from specjax.request import prepare
from specjax.session import Row
from specjax.session.warming import outline


@contextlib.contextmanager
def begin(options: Options) -> Iterator[tuple[Job, Run | None]]:
    """Reads and loads everything; no models (None) where nothing is left to do.

    Raises:
      ValueError, OSError: on what does not fit together or cannot be read.
    """
    job = read_job(options)
    with contextlib.closing(job.results) if job.results else contextlib.nullcontext():
        yield job, None if job.complete else load_models(job)


def load_models(job: Job) -> Run:
    """The models, and the prompts as they read them, checked. Raises ValueError."""
    started, options = time.perf_counter(), job.options
    with Ahead() as ahead:
        compiled = begin_compiling(job, ahead)
        target = options.load_target()
        spec = options.load_drafter(job.drafter, target)
        read = time.perf_counter()
        run = Run(job, target, spec, [a.prompt(target) for a in job.asked])
        check(run)
        ready = compiled.result()
    times = (None if at is None else at - started for at in (read, ready))
    return dataclasses.replace(run, started=Started(*times))  # type: ignore[arg-type]


def check(run: Run) -> None:
    """Raises ValueError where a prompt cannot be served; notes go to stderr."""
    target, options = run.target, run.job.options
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        specjax.check(
            target,
            run.spec,
            run.prompts,
            seed=options.seed,
            batch_size=options.together,
            **run.job.request,
        )
    for warning in caught:
        plain = issubclass(warning.category, PlainTextWarning)
        told = f"{target.name} was trained on conversations; --chat uses its chat template."
        print("note:", told if plain else warning.message, file=sys.stderr)


def plan(job: Job) -> list[Batch]:
    """What is left to do: one batch whose rows change hands.

    With a device call a cycle the rows of a batch begin and end together; such batches do not move
    when a run is continued. A stream shows one prompt after the other.
    """
    num, size = len(job.asked), job.options.together
    first = len(job.results.records) if job.results else 0
    if num > 1 and not job.options.stream and not job.options.host_loop:
        return [Batch(range(first, num), at_once=min(size, num))]
    return [
        Batch(range(start, min(start + size, num)))
        for start in range(first // size * size, num, size)
    ]


def begin_compiling(job: Job, ahead: Ahead) -> concurrent.futures.Future[float | None]:
    """Compiles in threads what the first texts need, from headers and prompts alone.

    Whatever is wrong with these is told where models are loaded: here it only ends the attempt. Of
    several processes each has to take part in much of this, so that they compile later.

    Returns:
      When it was done, by `time.perf_counter`; None: it could not be.
    """
    done = concurrent.futures.Future[float | None]()
    outline_first: Callable[[], None] | None = None
    if hosts.alone():
        with contextlib.suppress(Exception), warnings.catch_warnings(), outlined():
            warnings.simplefilter("ignore")
            target = job.options.load_target()
            spec = job.options.load_drafter(job.drafter, target)
            run = Run(job, target, spec, [a.prompt(target) for a in job.asked])
            rows, how = asked_first(run)
            outline_first = functools.partial(outline, target, spec, rows, **how)
    if outline_first is None:
        done.set_result(None)
        return done

    def compile_all(outline_first: Callable[[], None]) -> None:
        ready = None
        with contextlib.suppress(Exception), ahead.compiling():
            outline_first()
            ahead.wait()
            ready = time.perf_counter()
        done.set_result(ready)

    threading.Thread(target=compile_all, args=(outline_first,), daemon=True).start()
    return done


def asked_first(run: Run) -> tuple[list[Row], dict[str, Any]]:
    """The requests of the first batch, and how they are decoded: arguments of `outline`."""
    options, batch = run.job.options, plan(run.job)[0]
    given = run.arguments(batch.rows)
    how = {name: given.pop(name) for name in ("rule", "chunk")}
    how |= {"details": options.details, "batch_size": batch.at_once or None}
    how["by_host"] = options.host_loop
    names = ("prompts", "max_new_tokens", "seed", "stop", "stop_token_ids")
    law = {name: value for name, value in given.items() if name not in names}
    asked = {name: given[name] for name in names}
    rows, _ = prepare(run.target, **asked, options=law)
    if not batch.at_once and not options.stream:  # as `writing.generate_batch` fills it up
        size = min(options.batch_size, len(run.prompts))
        rows += rows[-1:] * (size - len(rows))
    return rows, how
