"""A benchmark of drafters: measured, scored, predicted, or shown again."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich import progress
from rich.console import Console

from specjax.core import hosts, machine
from specjax.core.compile_cache import default_directory, use_compile_cache
from specjax.core.files import write_atomically
from specjax.core.options import keywords, option
from specjax.lab.bench import job, measure, outputs, prediction, scoring
from specjax.lab.bench.job import Config, read_config
from specjax.lab.bench.store import Store, mirror
from specjax.lab.bench.summary import summarise
from specjax.lab.bench.synthetic import parse_curve
from specjax.lab.records import codec
from specjax.lab.records.run import Summary
from specjax.lab.view import escape
from specjax.lab.view.headline import headline
from specjax.lab.view.tables import table


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured, or shown again."""

    config: Any = option(
        None,
        "A file of configs/, or one that returns config_of(Config, ...) as those do; none: the "
        "defaults.",
    )
    workdir: str | None = option(None, "Where the results go, or are.")
    report_only: bool = option(
        False, "Makes tables, figures and page anew, from what --workdir holds."
    )
    compare: tuple[str, ...] = option((), "Directories of finished runs, shown in one table.")


@dataclasses.dataclass(frozen=True)
class Begun:
    """A run whose parts fit together, before its first measurement."""

    job: job.Job
    store: Store
    config: Config
    mode: str


@dataclasses.dataclass(frozen=True)
class Several:
    """Runs that are measured one after the other, of one target kept in several ways."""

    path: str
    settings: dict[str, dict[str, Any]]  # by the name of a run, which is that of its directory

    @property
    def directories(self) -> tuple[str, ...]:
        return tuple(str(Path(self.path) / name) for name in self.settings)


@keywords(Options)
def benchmark(options: Options) -> None:
    """Measures what is missing of a benchmark, and writes and prints what came of it.

    Raises:
      ValueError, OSError: in one line, before the first measurement, on what cannot be used.
    """
    begun = begin(options)
    if begun is not None:
        run(begun)


def begin(options: Options) -> Begun | Several | None:
    """Reads and loads everything; what needs no device is done at once (None).

    Raises:
      ValueError, OSError: in one line, on what cannot be used.
    """
    if (options.compare or options.report_only) and not hosts.is_first():
        return None
    if options.compare:
        compare(options)
        return None
    if not options.workdir:
        raise ValueError("Where to? Set --workdir.")
    store = Store(options.workdir)
    if options.report_only:
        store.read_run()
        store.take()
        finish(store)
        return None
    settings = dataclasses.asdict(Config()) if options.config is None else dict(options.config)
    config = read_config(settings)
    if config.mode == "predict":
        if hosts.is_first():
            predict(store, config)
        return None
    workdir = mirror(options.workdir)
    if config.stored:
        return begin_several(Several(workdir, job.side_by_side(settings)))
    return begin_one(Store(workdir), settings)


def begin_several(several: Several) -> Several:
    """Checks all of the runs before the first of them is begun, one target at a time in memory."""
    found = []
    for directory, settings in zip(several.directories, several.settings.values(), strict=True):
        store = Store(directory)
        store.look()
        prepared = job.prepare(settings, store)
        found.append((store, prepared.run, prepared.prompts))
        del prepared
    for store, run, prompts in found:
        store.begin(run, prompts)
    return several


def begin_one(store: Store, settings: dict[str, Any]) -> Begun:
    """Reads and loads what one run needs. Raises ValueError, OSError, in one line."""
    config = read_config(settings)
    store.look()
    if named := config.compilation_cache:
        use_compile_cache(default_directory() if named == "default" else named)
    prepared = job.prepare(settings, store)
    begun = store.begin(prepared.run, prepared.prompts)
    return Begun(prepared, store, config, begun.mode)


def run(begun: Begun | Several) -> None:
    """Measures what is missing, and writes and prints what came of it."""
    if isinstance(begun, Several):
        for directory, settings in zip(begun.directories, begun.settings.values(), strict=True):
            run(begin_one(Store(directory), settings))
        if hosts.is_first():
            compare(Options(compare=begun.directories, workdir=begun.path))
        return
    with bar(_console()) as report:
        if begun.mode == "replay":
            scoring.record_all(begun.job, begun.store, report)
        else:
            run_cases(begun.job, begun.store, begun.config, report)
    if hosts.is_first():
        finish(begun.store)


def run_cases(
    prepared: job.Job,
    store: Store,
    config: Config,
    report: Callable[[str, float, float], None],
) -> None:
    others = machine.Others()
    measure.measure(prepared, store, report)
    measure.count_experts(prepared, store, report)
    run = store.read_run()
    run = dataclasses.replace(run, others=run.others + others.cores())
    store.write_run(run)
    if config.calibrate:
        unpredicted = measure.calibrate(prepared, store, repeats=config.calibrate, say=report)
        run = dataclasses.replace(run, unpredicted=unpredicted)
    if config.details:
        measure.add_details(prepared, store, report)
    store.write_run(dataclasses.replace(run, peak_bytes=machine.peak_bytes()))


def finish(store: Store) -> None:
    """From what the directory holds to everything that people read."""
    replayed = store.read_run().mode == "replay"
    summary = scoring.score(store) if replayed else summarise(store)
    outputs.write(store, summary)
    show(_console(), summary)
    _console().print(f"{store.path / 'report.html'}", soft_wrap=True)


def compare(options: Options) -> None:
    """Several runs in one table, and with --workdir in one page."""
    summary = outputs.compare(options.compare)
    if options.workdir:
        place = Store(options.workdir)
        if place.run_path.exists():
            raise ValueError(f"{place.path} holds a run of its own; use another --workdir.")
        place.take()
        outputs.write_comparison(options.compare, summary, place.path)
    show(_console(), summary)


def _console() -> Console:
    """Standard output, wide enough for tables where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def show(console: Console, summary: Summary) -> None:
    """What results.md and report.html say, too: the pooled row first."""
    for line in headline(summary):
        console.print(escape.rich(line), soft_wrap=True)
    console.print(table(summary))
    ratios = [
        (case.name, told.measured_over_predicted)
        for case in summary.cases
        if (told := case.predicted) and told.measured_over_predicted is not None
    ]
    if ratios:
        console.print("measured over predicted speedup:")
        for name, ratio in ratios:
            console.print(f"  {ratio:.2f}  {escape.rich(name)}", soft_wrap=True)
    for line in outputs.remarks(summary.run, summary.rows):
        style = "bold red" * line.startswith("Not valid")
        console.print(escape.rich(line), soft_wrap=True, style=style)


def predict(store: Store, config: Config) -> None:
    """No target is loaded and no device is asked."""
    if not config.costs:
        raise ValueError("mode=predict needs costs: costs.json, or a run that has one.")
    found = prediction.forecast(config.costs, [parse_curve(c) for c in config.curves])
    path, ours = store.path, ("forecast.json", "forecast.md", ".lock")
    if path.exists() and any(p.name not in ours for p in path.iterdir()):
        raise ValueError(f"{path} holds something else; use another --workdir.")
    store.take()
    codec.write_file(path / "forecast.json", found)
    write_atomically(path / "forecast.md", prediction.markdown(found))
    _console().print(prediction.markdown(found), soft_wrap=True, markup=False)


@contextlib.contextmanager
def bar(console: Console) -> Iterator[Callable[[str, float, float], None]]:
    """A bar with the time left on a terminal, lines elsewhere."""
    columns = (
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.description}"),
    )
    shown = [-1]
    with progress.Progress(*columns, console=console, disable=not console.is_terminal) as whole:
        task = whole.add_task("", total=1.0)

        def report(what: str, done: float, total: float) -> None:
            whole.update(task, description=what, completed=done, total=total)
            tenth = int(10 * done / total) if total else 10
            if not console.is_terminal and (tenth != shown[0] or what.startswith(("warm", "cost"))):
                shown[0] = tenth
                print(f"{100 * done / max(total, 1):.0f} %  {what}", flush=True)

        yield report
