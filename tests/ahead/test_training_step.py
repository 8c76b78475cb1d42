"""A training step compiled for an H100 that is not there: nothing is multiplied twice.

Needs XLA's GPU compiler, see `test_in_place.py`.
"""

from __future__ import annotations

import dataclasses
import re

import pytest

from specjax.core.sharding import use_mesh
from specjax.lab.bench import training_cost
from specjax.lab.compiler import topology, whole
from specjax.lab.records.device import TrainingSetup

RAW = {**training_cost.SHAPES["small"], "model_type": "qwen3", "vocab_size": 4096}
SETUP = TrainingSetup(raw=RAW, layers=2, anchors=24, seq_len=320)
# Of the target's layers, by drafter, those that run: DFlash asks for no logits of it.
CASES = {"dflash": 5, "eagle3": 6}


@pytest.mark.parametrize("drafter", CASES)
def test_a_step_on_a_gpu(drafter: str) -> None:
    """Kernels of our own attend, without masks and scores; products are those of the account."""
    try:
        h100 = topology.find("h100:1")
    except ValueError as error:
        if "which is not installed" not in str(error):
            raise
        pytest.skip(str(error))
    setup = dataclasses.replace(SETUP, drafter=drafter, num_draft=3, chunk=64)
    step = training_cost.Step(setup, None, h100)
    with use_mesh(step.mesh):
        text = step.program.lower(*step.shapes).compile().as_text()
    calls = [line for line in text.splitlines() if "__gpu$xla.gpu.triton" in line]
    ours = [line for line in calls if re.search(r'op_name="[^"]*blocks[^"]*pallas_call', line)]
    passes = setup.layers if drafter == "dflash" else setup.num_draft
    assert len(ours) == CASES[drafter] + 3 * passes
    size = setup.seq_len
    assert not re.search(rf"\b({size}|{setup.anchors * setup.block}),{size}[],]", text)
    # Of DFlash's blocks the account counts the first slot, which guesses nothing.
    assert 0.95 < whole.count(text).products / sum(step.flops.values()) < 1.03
