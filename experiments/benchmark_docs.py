"""Writes docs/benchmarks.md from docs/benchmarks.in.md and the results stored in docs/results.

  python -m experiments.benchmark_docs
  python -m experiments.benchmark_docs --check      # fails if the file is not what this would write

To store a benchmark: copy its metrics.json to docs/results/NAME/ (and what other scripts wrote with
--output to docs/results/), and name it in the template; `specjax.lab.bench.documents` says how.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import cli
from specjax.core.files import write_atomically

with cli.needs_lab():
    from specjax.lab.bench.documents import render

_TEMPLATE = flags.DEFINE_string("template", "docs/benchmarks.in.md", "What to fill in.")
_RESULTS = flags.DEFINE_string("results", "docs/results", "Where the numbers are.")
_OUTPUT = cli.define_file("output", "The document.", default="docs/benchmarks.md")
_CHECK = flags.DEFINE_boolean("check", False, "Writes nothing, and says whether it would.")


def main(argv: Sequence[str]) -> None:
    del argv
    with cli.one_line_errors():
        template, output = Path(_TEMPLATE.value), Path(_OUTPUT.value)
        text = document(template, Path(_RESULTS.value))
        if not _CHECK.value:
            write_atomically(output, text)
        elif not output.exists() or output.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"{output} is not what {template} and {_RESULTS.value} make: edit those, and run "
                "python -m experiments.benchmark_docs."
            )


def document(template: Path, results: Path) -> str:
    """The filled-in text, with a note for who would edit it."""
    note = f"<!-- Made of {template.name} by experiments.benchmark_docs: edit that. -->\n\n"
    return note + render(template.read_text(encoding="utf-8"), results)


if __name__ == "__main__":
    cli.run(main)
