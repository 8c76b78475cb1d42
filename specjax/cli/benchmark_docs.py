"""Writes docs/benchmarks.md from docs/benchmarks.in.md and the results stored in docs/results.

  python -m experiments.benchmark_docs
  python -m experiments.benchmark_docs --check      # fails if the file is not what this would write

To store a benchmark: copy its metrics.json to docs/results/NAME/ (and what other scripts wrote with
--output to docs/results/), and name it in the template; `specjax.lab.bench.documents` says how.
"""

from __future__ import annotations

from specjax.cli.errors import needs_lab, one_line_errors
from specjax.cli.script import Script

with needs_lab():
    from specjax.lab.bench import documents


def main(options: documents.Options) -> None:
    with one_line_errors():
        documents.benchmark_docs.of(options)


script = Script("benchmark_docs", __doc__, documents.Options, main)
