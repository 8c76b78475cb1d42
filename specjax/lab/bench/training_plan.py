"""Predictions of DFlash training on devices that are not here, from shapes alone.

What a device must hold of weights, masters and moments, the products of a step that it computes,
and what it exchanges with others, over what its chip gives (`compiler.chips`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from specjax.core.sharding import axes_of_mesh
from specjax.lab.bench.training_cost import Step
from specjax.lab.compiler.chips import TRAINING, Chip
from specjax.lab.costs import account
from specjax.lab.records.device import TrainingSetup
from specjax.lab.records.planned import Exchange, PlannedTraining
from specjax.models import Frozen
from specjax.models import family as registered
from specjax.train.state import TrainState

_ALIKE = 0.03  # of a step's time


def plan(setup: TrainingSetup, chip: Chip, devices: int) -> list[PlannedTraining]:
    """Every mesh, the best first; none: none divides.

    The best holds the least of those that fit and whose step is as short as any: what is closer
    than `_ALIKE` no formula tells apart, and what passes hold in between needs room, too.
    """
    step = Step(setup, None)
    found = [predict(setup, chip, mesh, step) for mesh in meshes(setup, devices)]
    able = [one.seconds for one in found if one.fits] or [one.seconds for one in found]
    slower = lambda one: one.seconds > (1 + _ALIKE) * min(able)
    return sorted(
        found,
        key=lambda one: (
            *(not one.fits, slower(one)),
            *((one.seconds, 0) if slower(one) else (one.need, one.seconds)),
        ),
    )


def meshes(setup: TrainingSetup, devices: int) -> Iterator[dict[str, int]]:
    """The meshes of so many devices that the texts of a step and the target are split over."""
    config = registered(setup.raw["model_type"]).read_config(dict(setup.raw))
    for model in (n for n in range(1, devices + 1) if devices % n == 0):
        try:
            config.for_model_axis(model)
        except ValueError:
            continue
        over = devices // model
        if setup.rows % over == 0:
            for fsdp in (n for n in range(1, over + 1) if over % n == 0):
                yield {"data": over // fsdp, "fsdp": fsdp, "model": model}


def predict(
    setup: TrainingSetup, chip: Chip, mesh: dict[str, int], step: Step | None = None
) -> PlannedTraining:
    """One mesh, without what passes hold in between: that takes a compiler.

    ``step``: of ``setup`` without a mesh, if it is there.
    """
    step = step or Step(setup, None)
    sizes = axes_of_mesh(**mesh)
    auto = (AxisType.Auto,) * len(sizes)
    state, target = step.spread(AbstractMesh(tuple(sizes.values()), tuple(sizes), auto))
    bytes_of = lambda tree: sum(map(account.local_bytes, jax.tree.leaves(tree)))
    sent = exchanges(setup, chip, mesh, state, target)
    flops = {name: n // math.prod(mesh.values()) for name, n in step.flops.items()}
    products = sum(flops.values()) / (TRAINING * chip.flops)
    return PlannedTraining(
        mesh=sizes,
        texts=setup.rows,
        held={
            "target": bytes_of(target.params),
            "masters and moments": bytes_of(state),
            "gradients": bytes_of(state.params),
        },
        memory=chip.memory,
        flops=flops,
        exchanges=sent,
        seconds=products + sum(one.seconds for one in sent.values()),
    )


def exchanges(
    setup: TrainingSetup, chip: Chip, mesh: dict[str, int], state: TrainState, target: Frozen
) -> dict[str, Exchange]:
    """What a device exchanges in a step, by the axis of the mesh.

    Over ``fsdp``: the target is put together once, as only a forward pass needs it, the draft for
    both passes, and gradients are summed apart. Over ``data``: gradients are summed. Over
    ``model``: sums behind attention and MLP, of the target's pass forward, and of the draft's
    forward, again where the backward pass recomputes it, and backward.
    """
    data, fsdp, model = mesh["data"], mesh["fsdp"], mesh["model"]
    masters = state.params.values()
    found = {}
    if fsdp > 1:
        once = sum(_gathered(x, fsdp) for x in jax.tree.leaves(target.params))
        # Masters are float32, and cast behind the gather or before it, as the compiler likes.
        draft = sum(_gathered(x, fsdp) for x in masters)
        found["fsdp"] = _exchange(chip, fsdp * model, once + 3 * draft, 0)
    if data > 1:
        own = sum(map(account.local_bytes, masters))
        found["data"] = _exchange(chip, data * fsdp * model, 2 * (data - 1) / data * own, 1)
    if model > 1:
        config = target.config
        width = 2 * config.hidden_size
        texts = setup.rows // (data * fsdp)
        through = texts * (setup.seq_len + setup.anchors * setup.block)
        of_target = 2 * config.num_layers + 1
        numbers = of_target * texts * setup.seq_len + 6 * setup.layers * through
        each = 2 * (model - 1) / model * numbers * width
        found["model"] = _exchange(chip, model, each, of_target + 6 * setup.layers)
    return found


def _gathered(x: Any, size: int) -> float:
    """Bytes that come from others to put an array together, if it is split over ``fsdp``."""
    split = any("fsdp" in (a if isinstance(a, tuple) else (a,)) for a in x.sharding.spec)
    return (size - 1) * account.local_bytes(x) if split else 0


def _exchange(chip: Chip, devices: int, num_bytes: float, count: int) -> Exchange:
    far = devices > chip.machine
    link, hop = (chip.between, chip.hop_between) if far else (chip.link, chip.hop)
    return Exchange(num_bytes, num_bytes / link + count * 2 * math.ceil(math.log2(devices)) * hop)
