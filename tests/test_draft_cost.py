"""What the device benchmark counts: bytes of a drafter's cycle, arithmetic of its training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest
from flax import nnx
from scripts import script

from experiments.benchmarking import draft_cost, floor, training_cost
from specjax.drafters import DFlash, Eagle3, dflash, eagle3
from specjax.drafters.dflash.net import DFlashNet
from specjax.drafters.eagle3.net import Eagle3Net
from specjax.models import FAMILIES, Frozen

with script("benchmark_training") as benchmark_training:
    SHAPES = benchmark_training.SHAPES
RAW = {**SHAPES["8b"], "model_type": "qwen3", "vocab_size": 151936}
H, V, INNER = 4096, 151936, 12288
LAYER = 2 * H * 128 * (32 + 8) + 3 * H * INNER  # weights of attention and MLP


def abstract(make: Any, config: Any) -> Frozen:
    """A network of shapes without values, in bfloat16."""
    net = nnx.eval_shape(lambda: make(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(net)
    return Frozen(params=params, graphdef=graphdef, config=config)


@pytest.fixture(scope="module")
def target() -> Any:
    family = FAMILIES["qwen3"]
    config = family.read_config(RAW)
    return SimpleNamespace(net=abstract(family, config), config=config)


def test_the_roofline_of_dflash_for_an_8b(target: Any) -> None:
    """About 0.83 tau: 16 GB, a draft of 2.1 GB and a head of 1.2 GB."""
    config = dflash.fresh_config(target.config, 15, layers=5, num_taps=5)
    spec = DFlash(abstract(DFlashNet, config), 15)
    reads = draft_cost.draft_bytes(spec, target)
    assert reads == pytest.approx(2 * (5 * LAYER + 5 * H * H + V * H), rel=1e-3)
    assert reads / 1e9 == pytest.approx(2.1 + 1.2, abs=0.1)
    share = draft_cost.ideal_share(floor.weight_bytes(target.net), reads)
    assert share == pytest.approx(0.82, abs=0.015)


def test_every_step_of_eagle3_reads_its_layer_and_its_head(target: Any) -> None:
    config = eagle3.fresh_config(target.config, draft_vocab_size=32_000)
    spec = Eagle3(abstract(Eagle3Net, config), 5)
    step = LAYER + H * 128 * (32 + 2 * 8) + 32_000 * H  # its layer reads states and embeddings
    assert draft_cost.draft_bytes(spec, target) == pytest.approx(
        2 * (3 * H * H + 5 * step), rel=1e-3
    )


def test_arithmetic_of_training(target: Any) -> None:
    config = dflash.fresh_config(target.config, 15, layers=5, num_taps=5)
    setup = training_cost.Setup(RAW, layers=5, anchors=512, seq_len=3072)
    slots = 512 * 16
    head, drafter = slots * V * H, slots * 5 * LAYER
    # 10 and 17 TFLOP for one forward pass of the two, as in the cost notes of the method.
    assert 2 * head == pytest.approx(10.2e12, rel=0.01)
    assert 2 * drafter == pytest.approx(17e12, rel=0.1)
    context = 3072 * (5 * H * H + 5 * 2 * 8 * 128 * H)
    passes = 3072 * max(config.taps) * LAYER
    want = 2 * (passes + 3 * (context + drafter) + 2 * head)
    assert training_cost.flops(setup, target.config, config) == pytest.approx(want, rel=1e-6)
