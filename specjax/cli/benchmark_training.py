"""Training speed and memory of a drafter against anchors and vocabulary.

Memory is what the compiler plans for one step's temporaries (no device needs to hold it), so that
the shapes of real models can be asked on any machine; texts, tokens and anchor updates a second and
what each part adds to the share of the device's peak are measured where --time names sizes that fit
(docs/benchmarks.md).

  python -m experiments.benchmark_training --output=training.json
  python -m experiments.benchmark_training --shape=8b --anchors=64,512 --vocab=151936 --time
  python -m experiments.benchmark_training --drafter=eagle3 --vocab=151936 --topology=h100:1
"""

from __future__ import annotations

from specjax.cli.errors import needs_lab, one_line_errors
from specjax.cli.script import Script

with needs_lab():
    from specjax.lab.bench import training_cost


def main(options: training_cost.Options) -> None:
    with one_line_errors():
        training_cost.benchmark_training.of(options)


script = Script("benchmark_training", __doc__, training_cost.Options, main)
