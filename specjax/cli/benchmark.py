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

from specjax.cli.errors import needs_lab, one_line_errors
from specjax.cli.script import Script

with needs_lab():
    from specjax.jobs import benchmarking


def main(options: benchmarking.Options) -> None:
    with one_line_errors():
        begun = benchmarking.begin(options)
    if begun is not None:
        benchmarking.run(begun)


script = Script(
    "benchmark",
    __doc__,
    benchmarking.Options,
    main,
    settings=benchmarking.Config,
    several=True,
)
