"""Times a decoding step of a random-weight model on an accelerator, against the memory's speed.

How much of the measured copy bandwidth plain decoding reaches at batch 1; what a cycle that
verifies k guesses costs over a plain step; what cycles of DFlash (blocks of 16, 5 layers) and
EAGLE-3 (5 steps) with random weights cost over it, for the speedup at any assumed tau, beside what
reading the weights alone would take; what the loop on the device is worth; how long compilation
takes; where a step's time goes; and, on a GPU, how fast a DFlash drafter trains for this target.
Weights are drawn on the device. Expected: under 8 minutes on a data-centre GPU for the 8B shape;
--shape=tiny runs on a CPU within a minute or two.

  python -m experiments.benchmark_device --shape=llama-3.1-8b --output=device.json
  python -m experiments.benchmark_device --shape=tiny --cycles=16 --slots=256

Later parts are left out once --minutes have passed, and the output is written after every part.
"""

from __future__ import annotations

from specjax.cli.errors import needs_lab
from specjax.cli.script import Script

with needs_lab():
    from specjax.lab.bench import device


def main(options: device.Options) -> None:
    device.benchmark_device.of(options)


script = Script("benchmark_device", __doc__, device.Options, main)
