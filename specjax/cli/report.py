"""Writes the report of a benchmark, of several, or of a trace: one page that opens anywhere.

  python -m experiments.report --run=runs/bench
  python -m experiments.report --run=runs/bench --run=runs/other --output=compared
  python -m experiments.report --trace=dflash.jsonl --plain=plain.jsonl --output=report

No model and no network: whatever is drawn is in the files. Beside report.html lies figures/, with
each figure as PNG, light and dark, and as SVG.
"""

from __future__ import annotations

from specjax.cli.errors import needs_lab, one_line_errors
from specjax.cli.script import Script

with needs_lab():
    from specjax.jobs import reporting


def main(options: reporting.Options) -> None:
    with one_line_errors():
        print(reporting.report.of(options))


script = Script("report", __doc__, reporting.Options, main)
