"""Times a random-weight model on an accelerator, against the speed of its memory and arithmetic.

Parts, in this order, each left out by --skip:

  tune      with --tune: the variants of operations on the shapes that the cycles of one row and of
            --batches call; the fastest are kept for --kernels=tuned, in the file that --tuned names
  plain     a decoding step at batch 1: the share that it reaches of the bandwidths of a copy and
            of a read that are measured before; where its time goes; what the loop on the device is
            worth
  verify    what a cycle that verifies k guesses costs over it
  cycles    what cycles of DFlash (blocks of 16, 5 layers) and EAGLE-3 (5 steps) with random
            weights cost over it, for the speedup at any assumed tau, beside what reading the
            weights alone would take
  batches   a step, a pass that verifies 15 guesses and a DFlash cycle of 8 and 32 rows: shares of
            bandwidth and of the peak in bfloat16, and the tau above which a cycle pays
  contexts  passes behind long texts, where --contexts names their lengths
  start     from the start of a process to its first tokens, weights and a drafter on disk: cold
            (nothing compiled, nothing tuned, files not in memory), on GPUs with autotuning known,
            and warm; reading and placing, compiling, first step; time to first token from then on
  training  steps of a DFlash drafter for this target: texts, tokens and anchor updates a second,
            share of the peak by part, memory

  transformers  plain decoding of the same sizes by Hugging Face Transformers, eager and compiled,
            where it is installed, for --peer_seconds at most
  profile   time on the device by named scope (draft, verify, accept, commit); --profile_dir keeps
            the traces

With each program its kernels a cycle and how long compiling took; with all, versions, the clocks
that nvidia-smi tells, --kernels, --split_k and the command. Weights are drawn on the device.
--shape=tiny runs on a CPU, in a few minutes.

  python -m experiments.benchmark_device --shape=llama-3.1-8b --output=device.json
  python -m experiments.benchmark_device --tune=True --tuned=tuned.json --skip=start,training
  python -m experiments.benchmark_device --shape=tiny --cycles=16 --slots=256 --skip=training

Each figure is printed, and written, when it is there. Once --minutes have passed nothing further is
begun; Ctrl-C and SIGTERM end the run behind the tables of what was measured.
"""

from __future__ import annotations

import os

from specjax.cli.errors import needs_lab, one_line_errors
from specjax.cli.script import Script

with needs_lab():
    from specjax.lab.bench.device import job, options


# The part start runs other processes on the same GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def main(asked: options.Options) -> None:
    with one_line_errors():
        job.benchmark_device.of(asked)


script = Script("benchmark_device", __doc__, options.Options, main)
