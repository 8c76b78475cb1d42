"""The page of a benchmark, of several, or of traces."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from specjax.core.options import keywords, option
from specjax.lab.view.report import report_traces, write_report
from specjax.trace import trace_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What a report is made of."""

    run: tuple[str, ...] | None = option(
        None,
        "Directory of a complete benchmark; several of the same prompts are compared.",
        many=True,
    )
    trace: tuple[str, ...] | None = option(
        None, "Trace file of speculation; several, compared.", many=True
    )
    plain: str | None = option(None, "Trace file of plain decoding of the same prompts.")
    output: str | None = option(
        None,
        "Directory to write to. Default: the first --run; needed with --trace.",
        directory=True,
    )


@keywords(Options)
def report(options: Options) -> Path:
    """Writes report.html and its figures; returns the page.

    Raises:
      ValueError, OSError: in one line, on options or files that do not fit.
    """
    if bool(options.run) == bool(options.trace):
        raise ValueError("name either --run directories or --trace files, and not both.")
    if options.run:
        if options.plain is not None:
            raise ValueError("--plain goes with --trace; a --run holds its own plain decoding.")
        return write_report(options.run, output=options.output)
    if options.output is None:
        raise ValueError("--trace needs --output, the directory to write to.")
    paths = options.trace or ()
    files = {_name(path, paths): path for path in paths}
    if len(files) < len(paths):
        raise ValueError("--trace names a file twice; leave one out.")
    traces = {name: trace_file.load(path) for name, path in files.items()}
    if options.plain is not None:
        traces = {"plain": trace_file.load(options.plain), **traces}
    return report_traces(traces, options.output)


def _name(path: str, paths: Sequence[str]) -> str:
    """A trace by its file's name, where that tells them apart."""
    names = [Path(p).stem for p in paths]
    return Path(path).stem if names.count(Path(path).stem) == 1 else path
