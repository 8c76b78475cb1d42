"""What the device benchmark counts: bytes of a drafter's cycle, arithmetic of its training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from specjax.checkpoint.load import Model
from specjax.drafters import DFlash, Eagle3, dflash, eagle3
from specjax.drafters.dflash.net import DFlashNet
from specjax.drafters.eagle3.net import Eagle3Net
from specjax.lab.bench import training_cost
from specjax.lab.bench.device import options as device
from specjax.lab.costs import account
from specjax.models import FAMILIES, Frozen
from specjax.train.state import Skeleton

RAW = {**training_cost.SHAPES["8b"], "model_type": "qwen3", "vocab_size": 151936}
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
    net = abstract(family, config)
    return Model(net, None, (), None, None, "8b", np.dtype(jnp.bfloat16))


def draft_bytes(spec: Any, target: Model) -> int:
    """What drafting reads in a cycle."""
    bound, sizes = spec.bind(target, "one_hot"), {"rows": 1, "slots": 256, "context": 100}
    return account.cycle(target, spec, bound, **sizes).drafting_bytes


def test_the_roofline_of_dflash_for_an_8b(target: Any) -> None:
    """About 0.83 tau: 16 GB, a draft of 2.1 GB and a head of 1.2 GB."""
    config = dflash.fresh_config(target.config, 15, layers=5, num_taps=5)
    spec = DFlash(abstract(DFlashNet, config), 15)
    reads = draft_bytes(spec, target)
    assert reads == pytest.approx(2 * (5 * LAYER + 5 * H * H + V * H), rel=1e-3)
    assert reads / 1e9 == pytest.approx(2.1 + 1.2, abs=0.1)
    share = account.ideal_share(account.weight_bytes(target.net), reads)
    assert share == pytest.approx(0.82, abs=0.015)


def test_every_step_of_eagle3_reads_its_layer_and_its_head(target: Any) -> None:
    config = eagle3.fresh_config(target.config, draft_vocab_size=32_000)
    spec = Eagle3(abstract(Eagle3Net, config), 5, target_ids=jnp.arange(32_000))
    step = LAYER + H * 128 * (32 + 2 * 8) + 32_000 * H  # its layer reads states and embeddings
    assert draft_bytes(spec, target) == pytest.approx(2 * (3 * H * H + 5 * step), rel=1e-3)


def test_arithmetic_of_training(target: Any) -> None:
    config = dflash.fresh_config(target.config, 15, layers=5, num_taps=5)
    objective = training_cost.DFlashObjective(None, config, anchors=512)  # type: ignore[arg-type]
    make = lambda: DFlashNet(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    _, masters = Skeleton.of(nnx.eval_shape(make))
    slots = 512 * 16
    head, drafter = slots * V * H, slots * 5 * LAYER
    # 10 and 17 TFLOP for one forward pass of the two, as in the cost notes of the method.
    assert 2 * head == pytest.approx(10.2e12, rel=0.01)
    assert 2 * drafter == pytest.approx(17e12, rel=0.1)
    context = 3072 * (5 * H * H + 5 * 2 * 8 * 128 * H)
    passes = 3072 * max(config.taps) * LAYER
    want = {"target": 2 * passes, "draft": 6 * (context + drafter), "head": 4 * head}
    found = account.training_parts(objective, masters, target.net, 1, 3072)
    assert found == pytest.approx(want, rel=1e-6)
    total = account.training_flops(objective, masters, target.net, 1, 3072)
    assert total == sum(found.values())


def test_arithmetic_of_training_eagle3(target: Any) -> None:
    """Seven steps through the draft and its head; the target's own teaches once a token."""
    config, rows = eagle3.fresh_config(target.config, draft_vocab_size=32_000), 32_000
    net = abstract(Eagle3Net, config)
    objective = training_cost.Eagle3Objective(None, config, num_draft=7)  # type: ignore[arg-type]
    _, masters = Skeleton.of(net.module)
    step = LAYER + H * 128 * (32 + 2 * 8) + rows * H
    draft = 1024 * (3 * H * H + 7 * step)
    want = {"target": 2 * 1024 * max(config.taps) * LAYER, "draft": 6 * draft}
    found = account.training_parts(objective, masters, target.net, 1, 1024)
    assert found == pytest.approx({**want, "head": 2 * 1024 * V * H}, rel=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: device.Options(shape="nano"), "shape=nano: must be one of"),
        (lambda: device.Options(shape="tiny", num_draft=("4", "x")), "num_draft=4,x: must be posi"),
        (lambda: device.Options(shape="tiny", tau=("0.5",)), "tau: must be numbers of at least 1"),
        (lambda: device.Options(shape="tiny", num_draft=(200,), slots=256), "slots=256: too few"),
        (lambda: device.Options(shape="tiny", anchors=9, seq_len=8), "anchors=9: more than"),
        (
            lambda: device.Options(shape="tiny", skip=("plain", "trees")),
            "skip=trees: must be among",
        ),
        (lambda: device.Options(shape="tiny", batches=("0",)), "batches=0: must be positive"),
        (lambda: device.Options(shape="llama-3.1-8b"), "on a CPU: try the script with"),
        (lambda: training_cost.Options(anchors=(9,), seq_len=8), "anchors=9: more than the 8"),
        (
            lambda: training_cost.Options(drafter="mtp"),
            "drafter=mtp: must be one of dflash",
        ),
        (
            lambda: training_cost.Options(drafter="eagle3", remat="blocks"),
            "remat='blocks' is unknown",
        ),
        (
            lambda: training_cost.Options(drafter="eagle3", pack=8, time=True),
            "pack: leave --drafter out",
        ),
        (
            lambda: training_cost.Options(pack=2000, time=True),
            "--pack=2000: half of the texts are longer",
        ),
        (lambda: training_cost.Options(vocab=()), "vocab=: must be positive integers"),
    ],
)
def test_what_cannot_be_measured_is_told_before(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as info:
        make()
    assert "\n" not in str(info.value)
