"""Compiles a whole generation for TPUs or GPUs that need not be there, and reports what it costs.

Weights are abstract: nothing is allocated. The loop of cycles is compiled as it runs, and its
optimised program is read: memory a chip, kernels, communication, bytes and operations of a cycle
against what it cannot do without, and copies of caches, of which there should be none.

  python -m experiments.compile --topology=v5e:2x4 --mesh=data:1,model:8 --output=report.json
  python -m experiments.compile --topology=local --config.target=tiny --config.dtype=float32
  python -m experiments.compile --topology=local --config.target=DIR --config.layers=2
  python -m experiments.compile --topology=h100:1 --config.drafter=eagle3 --config.num_draft=5
  python -m experiments.compile --read=after.json --compare=before.json
  python -m experiments.compile --read=8.json --fewer=6.json   # reports on 8 and on 6 layers

DIR holds a config.json; its weights are not read. Defaults that are too large for the target are
taken smaller, with a word.

Needs the TPU compiler (pip install 'specjax[tpu]') but no TPU, or the GPU compiler (pip install
--no-deps jax-cuda12-plugin jax-cuda12-pjrt, of jax's version) but no GPU; --topology=local does
without. A whole 8B model takes a few minutes on 2 cores for TPUs and one for GPUs, four layers of
it (--config.layers=4) half a minute. What is compiled are the fields of --config.
"""

from __future__ import annotations

from specjax.cli.errors import needs_lab, one_line_errors
from specjax.cli.script import Script

with needs_lab():
    from specjax.jobs import compiling


def main(options: compiling.Options) -> None:
    with one_line_errors():
        compiling.compile_report.of(options)


script = Script("compile", __doc__, compiling.Options, main)
