"""Writes the report of a benchmark, of several, or of a trace: one page that opens anywhere.

  python -m experiments.report --run=runs/bench
  python -m experiments.report --run=runs/bench --run=runs/other --output=compared
  python -m experiments.report --trace=dflash.jsonl --plain=plain.jsonl --output=report

No model and no network: whatever is drawn is in the files. Beside report.html lies figures/, with
each figure as PNG, light and dark, and as SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import cli
from specjax.trace import trace_file

with cli.needs_lab():
    from specjax.lab.view.report import report_traces, write_report

_RUN = flags.DEFINE_multi_string(
    "run", None, "Directory of a complete benchmark; several of the same prompts are compared."
)
_TRACE = flags.DEFINE_multi_string("trace", None, "Trace file of speculation; several, compared.")
_PLAIN = flags.DEFINE_string("plain", None, "Trace file of plain decoding of the same prompts.")
_OUTPUT = cli.define_directory(
    "output", "Directory to write to. Default: the first --run; needed with --trace."
)


def main(argv: Sequence[str]) -> None:
    del argv
    with cli.one_line_errors():
        print(write())


def write() -> Path:
    """Writes what the flags ask for.

    Raises:
      ValueError, OSError: in one line, on flags or files that do not fit.
    """
    if bool(_RUN.value) == bool(_TRACE.value):
        raise ValueError("name either --run directories or --trace files, and not both.")
    if _RUN.value:
        if _PLAIN.value is not None:
            raise ValueError("--plain goes with --trace; a --run holds its own plain decoding.")
        return write_report(_RUN.value, output=_OUTPUT.value)
    if _OUTPUT.value is None:
        raise ValueError("--trace needs --output, the directory to write to.")
    paths = _TRACE.value or []
    files = {_name(path, paths): path for path in paths}
    if len(files) < len(paths):
        raise ValueError("--trace names a file twice; leave one out.")
    traces = {name: trace_file.load(path) for name, path in files.items()}
    if _PLAIN.value is not None:
        traces = {"plain": trace_file.load(_PLAIN.value), **traces}
    return report_traces(traces, _OUTPUT.value)


def _name(path: str, paths: Sequence[str]) -> str:
    """A trace by its file's name, where that tells them apart."""
    names = [Path(p).stem for p in paths]
    return Path(path).stem if names.count(Path(path).stem) == 1 else path


if __name__ == "__main__":
    cli.run(main)
