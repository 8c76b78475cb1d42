"""The device benchmark from its options to its tables: a run that may be stopped at any moment."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import jax
from rich.console import Console

from specjax.core import choices
from specjax.core.options import keywords
from specjax.core.program import TILING
from specjax.lab.bench.device.bench import Bench
from specjax.lab.bench.device.options import Options
from specjax.lab.records.device import DeviceReport
from specjax.lab.view.device import show
from specjax.runs.places import try_directory

_TERMINATED = 128 + signal.SIGTERM  # the exit status that shells give such an end


@keywords(Options)
def benchmark_device(options: Options) -> DeviceReport:
    """Measures a random-weight model on the first device, part by part, and prints what it finds.

    Each figure is printed and written when it is there. Ctrl-C and SIGTERM end the run with the
    tables of what was measured so far, as --minutes does.

    Raises:
      KeyboardInterrupt: on Ctrl-C, behind the tables.
      SystemExit: on SIGTERM, the same, with status 143.
      ValueError: in one line, by the options, on what cannot be run.
    """
    if options.exhaustive:  # for the processes that are started, too
        os.environ[TILING] = "exhaustive"
    if options.tune and "tune" not in options.skip:
        choices.read(choices.file())  # to be added to, much later
        try_directory(choices.file().parent, "--tuned")
    console, begin = Console(highlight=False), time.perf_counter()
    console.print("[dim]   0.0 s  weights[/dim]")
    with _ended_by_sigterm():
        bench = Bench(options)
        current = ""
        try:
            for current, step in bench.steps():
                spent = time.perf_counter() - begin
                if spent > 60 * options.minutes:
                    bench.note(skipped=(*bench.found.skipped, current))
                    continue
                console.print(f"[dim]{spent:6.1f} s  {current}[/dim]")
                told = _or_out_of_memory(bench, current, step)
                console.print(f"          {told}", soft_wrap=True, markup=False)
                bench.save()
        except BaseException:
            bench.note(stopped_in=current)
            raise
        finally:
            bench.save()
            show(console, bench.found, taus=tuple(map(str, options.tau)), minutes=options.minutes)
    return bench.found


def _or_out_of_memory(bench: Bench, name: str, step: Callable[[], str]) -> str:
    """What a step found, in a line; one that the device has no room for ends no other."""
    try:
        told = step()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        bench.note(no_room=(*bench.found.no_room, name))
        return "does not fit into the device's memory"
    return told


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM raises SystemExit where Python is, so that what was found can be told."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(_TERMINATED)

    if threading.current_thread() is not threading.main_thread():  # Python handles none elsewhere
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
