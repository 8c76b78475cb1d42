"""Predictions for slices and machines that are not here, from shapes alone.

The least that a device must read, do and send (`costs.account`), over what its chip gives
(`chips`). A model is alike in its layers, so that two depths tell of all. Along `data`
nothing changes for a device but how many rows it has, which is why only the other axes are traced.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from specjax.core.platform import Platform
from specjax.core.sharding import axes_of_mesh
from specjax.drafters import NoDraft
from specjax.drafters.spec import ask
from specjax.lab.compiler.abstract import Abstract, abstract
from specjax.lab.compiler.chips import PRODUCTS, REACHED, Chip
from specjax.lab.compiler.target import depth_of, plain_config
from specjax.lab.costs import account
from specjax.lab.records.compiled import Setup
from specjax.lab.records.planned import Planned, Step
from specjax.models.frozen import Frozen
from specjax.models.layers.experts import Experts
from specjax.models.layers.linear import Linear


@dataclasses.dataclass(frozen=True)
class Share:
    """What a device that shares a model with others must do for its rows."""

    held: dict[str, float]
    plain: tuple[float, float]  # bytes, operations
    cycle: tuple[float, float]
    # Sums over the devices that share the model, and how many numbers cross in them.
    plain_sums: tuple[float, float]
    cycle_sums: tuple[float, float]
    sent_bytes: int  # of one of these numbers


def meshes(setup: Setup, devices: int, rows: int) -> Iterator[dict[str, int]]:
    """The meshes of so many devices that the target and the rows can be split over."""
    plain = plain_config(setup.target, 0)
    mixture = getattr(plain, "has_mixture", False)
    for shared in (n for n in range(1, devices + 1) if devices % n == 0):
        if rows % (devices // shared):
            continue
        for experts in (n for n in range(1, shared + 1) if shared % n == 0):
            if experts > 1 and not (mixture and plain.mixture.num % experts == 0):
                continue
            try:
                plain.for_model_axis(shared // experts)
            except ValueError:
                continue
            yield {"data": devices // shared, "model": shared // experts, "experts": experts}


def plan(
    setup: Setup, chip: Chip, devices: int, rows: int, *, reached: float = REACHED
) -> list[Planned]:
    """Every mesh, the one with the shortest cycle of those that fit first; none: none divides.

    Raises:
      ValueError: in one line, if the drafter cannot be split over any mesh of the target.
    """
    found, refused = list[Planned](), list[ValueError]()
    for mesh in meshes(setup, devices, rows):
        try:
            found.append(predict(setup, chip, mesh, rows, reached))
        except ValueError as error:  # of the drafter's sizes: `meshes` asks the target's
            refused.append(error)
    if refused and not found:
        raise refused[0]
    # Whoever decodes without a drafter takes the mesh that is best for that.
    able = [p.plain.seconds for p in found if p.fits] or [p.plain.seconds for p in found]
    found = [dataclasses.replace(p, best_plain=min(able)) for p in found]
    return sorted(found, key=lambda p: (not p.fits, p.cycle.seconds))


def predict(
    setup: Setup, chip: Chip, mesh: dict[str, int], rows: int, reached: float = REACHED
) -> Planned:
    """One mesh."""
    here = rows // mesh["data"]
    share = whole_share(setup, chip, mesh["model"], mesh["experts"], here)
    shared = mesh["model"] * mesh["experts"]

    def step(least: tuple[float, float], summed: tuple[float, float]) -> Step:
        num_bytes, flops = least
        sums, numbers = summed if shared > 1 else (0.0, 0.0)
        sent = numbers * share.sent_bytes
        busy = max(num_bytes / (reached * chip.bandwidth), flops / (PRODUCTS * chip.flops))
        seconds = busy + chip.sum_seconds(shared, sent, sums)
        return Step(num_bytes, flops, sums, sent, seconds)

    return Planned(
        mesh=axes_of_mesh(**mesh),
        rows=rows,
        held={name: round(size) for name, size in share.held.items()},
        memory=chip.memory,
        plain=step(share.plain, share.plain_sums),
        cycle=step(share.cycle, share.cycle_sums),
    )


@functools.lru_cache(maxsize=256)
def whole_share(setup: Setup, chip: Chip, model: int, experts: int, rows: int) -> Share:
    """Of all layers, on the line through two depths."""
    low, high = depths(setup)
    full = depth_of(setup.target)
    if full <= high:
        return _share(setup, chip, model, experts, rows, 0)
    one, two = (_share(setup, chip, model, experts, rows, n) for n in (low, high))
    along = lambda a, b: a + (b - a) * (full - low) / (high - low)
    pair = lambda a, b: (along(a[0], b[0]), along(a[1], b[1]))
    return dataclasses.replace(
        one,
        held={name: along(one.held[name], two.held[name]) for name in one.held},
        plain=pair(one.plain, two.plain),
        cycle=pair(one.cycle, two.cycle),
        plain_sums=pair(one.plain_sums, two.plain_sums),
        cycle_sums=pair(one.cycle_sums, two.cycle_sums),
    )


def depths(setup: Setup) -> tuple[int, int]:
    """Two numbers of layers that differ by a period, behind those that are unlike the rest."""
    plain = plain_config(setup.target, 0)
    windows, named = getattr(plain, "windows", ()), ("dense_layers", "full_layers")
    kinds = [
        (windows[i] if windows else None, *(i in getattr(plain, name, ()) for name in named))
        for i in range(plain.num_layers)
    ]

    def repeats(begin: int, period: int) -> bool:
        rest = kinds[begin:]
        return rest[period:] == rest[: max(len(rest) - period, 0)]

    every = ((b, p) for p in range(1, len(kinds) + 1) for b in range(len(kinds)) if repeats(b, p))
    begin, period = min(every, key=lambda found: (sum(found), found))
    low = begin + period * -(-max(setup.draft_taps, 1) // period)
    return low, low + period


@functools.lru_cache(maxsize=256)
def _session(setup: Setup, platform: Platform, model: int, experts: int) -> Abstract:
    """Of the devices that share a model."""
    sizes = axes_of_mesh(data=1, model=model, experts=experts)
    mesh = None
    if model * experts > 1:
        auto = (AxisType.Auto,) * len(sizes)
        mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=auto)
    return abstract(setup, mesh, platform)  # type: ignore[arg-type]


def _share(setup: Setup, chip: Chip, model: int, experts: int, rows: int, layers: int) -> Share:
    some = dataclasses.replace(setup, layers=layers, rows=1)
    session = _session(some, chip.platform, model, experts)
    target, drafter, spec = session.target, session.drafter, session.spec
    lengths: dict[str, int] = {"rows": rows, "slots": setup.slots, "context": setup.context}
    plain = NoDraft()
    one = account.cycle(target, plain, plain.bind(target, "one_hot"), **lengths)
    cycle = account.cycle(target, spec, drafter, **lengths)
    count, width = drafter.num_draft, target.config.hidden_size
    # Two sums a layer, and one of the embedding (experiments.compile counts them).
    of_target = lambda net: 2 * net.config.num_layers + 1
    once = np.array([of_target(target.net), of_target(target.net) * rows * width], float)
    sums = once * [1, count + 1]
    fed = rows * ask(spec, "tokens_fed")(count)  # in all draft passes of a cycle
    net = getattr(drafter, "net", None)
    if net is not None and not net.replicated:
        of_pass = sums_of_pass(net)
        passes = account.serial_passes(spec, count)
        sums += [of_pass * passes, of_pass * fed * _width(net, width)]
    part, again = ask(spec, "target_passes")(target, count)
    if again:
        sums += [of_target(part) * again, of_target(part) * fed * width]
    # TPUs add up what is rounded already (`ops.sum_over_mesh`).
    rounded = chip.platform.name == "tpu"
    return Share(
        held=dict(account.held_bytes(target, drafter, rows=rows, slots=setup.slots)),
        plain=(one.bytes, one.flops),
        cycle=(cycle.bytes, cycle.flops),
        plain_sums=tuple(once.tolist()),
        cycle_sums=tuple(sums.tolist()),
        sent_bytes=jnp.dtype(setup.dtype).itemsize if rounded else 4,
    )


def sums_of_pass(net: Frozen) -> int:
    """How many sums over the devices that share it a pass of a drafter's network takes.

    One for each matrix whose input is split, experts and what is added to them counting once, and
    one of the embedding where there is a layer that takes one.
    """
    module, found = net.module, 0
    for path, part in nnx.iter_modules(module):
        whole = isinstance(part, Linear) and part.splits_input and "shared" not in f"{path}"
        found += whole or isinstance(part, Experts)
    heads = len(module.heads) if found and hasattr(module, "heads") else 1  # a pass runs one
    return found // heads + 1 if found else 0


def _width(net: Frozen, otherwise: int) -> int:
    config = getattr(net.config, "backbone", net.config)
    return int(getattr(config, "hidden_size", otherwise))
