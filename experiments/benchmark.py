"""Measures drafters: plain decoding and speculation in turn, on the same prompts, in one process.

  python -m experiments.benchmark --config=configs/benchmark.py --workdir=runs/demo
  python -m experiments.benchmark --config=configs/benchmark.py --workdir=runs/k \\
      --config.drafters="('demo:draft','ngram')" --config.num_draft="(1,2,4,8)"
  python -m experiments.benchmark --workdir=runs/demo --report_only
  python -m experiments.benchmark --compare=runs/demo,runs/other --workdir=runs/both

The directory holds traces, metrics.json, tables (CSV, Markdown, LaTeX), figures and report.html. A
killed run, started again, measures what is missing. configs/benchmark.py says what can be asked
for, among it --config.mode: measure, replay, synthetic, predict.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from absl import flags
from rich import progress
from rich.console import Console

from experiments import cli
from specjax.core import machine
from specjax.core.compile_cache import default_directory, use_compile_cache
from specjax.core.files import write_atomically

with cli.needs_lab():
    from specjax.lab.bench import job, measure, outputs, prediction, scoring
    from specjax.lab.bench.job import Config, read_config
    from specjax.lab.bench.store import Store
    from specjax.lab.bench.summary import summarise
    from specjax.lab.bench.synthetic import parse_curve
    from specjax.lab.records import codec
    from specjax.lab.records.run import Summary
    from specjax.lab.view import escape
    from specjax.lab.view.headline import headline
    from specjax.lab.view.tables import table

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the results go, or are.")
_REPORT_ONLY = flags.DEFINE_boolean(
    "report_only", False, "Makes tables, figures and page anew, from what --workdir holds."
)
_COMPARE = flags.DEFINE_list("compare", [], "Directories of finished runs, shown in one table.")


def main(argv: Sequence[str]) -> None:
    del argv
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    with cli.one_line_errors():
        if _COMPARE.value:
            return compare(console, _COMPARE.value)
        if not _WORKDIR.value:
            raise ValueError("Where to? Set --workdir.")
        store = Store(_WORKDIR.value)
        if _REPORT_ONLY.value:
            store.read_run()
            store.take()
            return finish(console, store)
        if _CONFIG.value is None:
            raise ValueError("What to measure? Set --config, such as configs/benchmark.py.")
        settings = _CONFIG.value.to_dict()
        config = read_config(settings)
        if config.mode == "predict":
            return predict(console, store, config)
        store.look()
        if named := config.compilation_cache:
            use_compile_cache(default_directory() if named == "default" else named)
        prepared = job.prepare(settings, store)
        run = store.begin(prepared.run, prepared.prompts)
    with bar(console) as report:
        if run.mode == "replay":
            scoring.record_all(prepared, store, report)
        else:
            run_cases(prepared, store, config, report)
    finish(console, store)


def run_cases(
    prepared: job.Job,
    store: Store,
    config: Config,
    report: Callable[[str, float, float], None],
) -> None:
    others = machine.Others()
    measure.measure(prepared, store, report)
    run = store.read_run()
    run = dataclasses.replace(run, others=run.others + others.cores())
    store.write_run(run)
    if config.calibrate:
        unpredicted = measure.calibrate(prepared, store, repeats=config.calibrate, say=report)
        run = dataclasses.replace(run, unpredicted=unpredicted)
    if config.details:
        measure.add_details(prepared, store, report)
    store.write_run(dataclasses.replace(run, peak_bytes=machine.peak_bytes()))


def finish(console: Console, store: Store) -> None:
    """From what the directory holds to everything that people read."""
    replayed = store.read_run().mode == "replay"
    summary = scoring.score(store) if replayed else summarise(store)
    outputs.write(store, summary)
    show(console, summary)
    console.print(f"{store.path / 'report.html'}", soft_wrap=True)


def compare(console: Console, directories: Sequence[str]) -> None:
    """Several runs in one table, and with --workdir in one page."""
    summary = outputs.compare(directories)
    if _WORKDIR.value:
        place = Store(_WORKDIR.value)
        if place.run_path.exists():
            raise ValueError(f"{place.path} holds a run of its own; use another --workdir.")
        place.take()
        outputs.write_comparison(directories, summary, place.path)
    show(console, summary)


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


def predict(console: Console, store: Store, config: Config) -> None:
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
    console.print(prediction.markdown(found), soft_wrap=True, markup=False)


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


if __name__ == "__main__":
    cli.run(main)
