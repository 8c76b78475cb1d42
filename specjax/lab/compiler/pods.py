"""Predictions for slices and machines that are not here, from shapes alone.

The least that a device must read, do and send (`costs.account`), over what its chip gives
(`chips`). A model is alike in its layers, so that two depths tell of all. Along `data`
nothing changes for a device but how many rows it has, which is why only the other axes are traced.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

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


@dataclasses.dataclass(frozen=True)
class Share:
    """What a device that shares a model with others must do for its rows."""

    held: dict[str, float]
    plain: tuple[float, float]  # bytes, operations
    cycle: tuple[float, float]
    plain_sums: float
    cycle_sums: float
    width: int  # of what is summed
    num_draft: int


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
    """Every mesh, the one with the shortest cycle of those that fit first; none: none divides."""
    found = [predict(setup, chip, mesh, rows, reached) for mesh in meshes(setup, devices, rows)]
    return sorted(found, key=lambda p: (not p.fits, p.cycle.seconds))


def predict(
    setup: Setup, chip: Chip, mesh: dict[str, int], rows: int, reached: float = REACHED
) -> Planned:
    """One mesh."""
    here = rows // mesh["data"]
    share = whole_share(setup, chip, mesh["model"], mesh["experts"], here)
    shared = mesh["model"] * mesh["experts"]

    def step(least: tuple[float, float], sums: float, tokens: int) -> Step:
        num_bytes, flops = least
        sums = sums if shared > 1 else 0.0
        sent = sums * tokens * share.width * 2.0  # bfloat16
        busy = max(num_bytes / (reached * chip.bandwidth), flops / (PRODUCTS * chip.flops))
        seconds = busy + chip.sum_seconds(shared, sent, sums)
        return Step(num_bytes, flops, sums, sent, seconds)

    return Planned(
        mesh=axes_of_mesh(**mesh),
        rows=rows,
        held={name: round(size) for name, size in share.held.items()},
        memory=chip.memory,
        plain=step(share.plain, share.plain_sums, here),
        cycle=step(share.cycle, share.cycle_sums, here * (share.num_draft + 1)),
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
        plain_sums=along(one.plain_sums, two.plain_sums),
        cycle_sums=along(one.cycle_sums, two.cycle_sums),
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
    # Two sums a layer, and one of the embedding (experiments.compile counts them).
    of_pass = 2 * target.config.num_layers + 1
    net = getattr(drafter, "net", None)
    drafts = 0.0
    if net is not None and not net.replicated:
        config = getattr(net.config, "backbone", net.config)
        drafts = (2 * config.num_layers + 1) * account.serial_passes(spec, drafter.num_draft)
    part, again = ask(spec, "target_passes")(target, drafter.num_draft)
    drafts += again * (2 * part.config.num_layers + 1) if again else 0
    return Share(
        held=dict(account.held_bytes(target, drafter, rows=rows, slots=setup.slots)),
        plain=(one.bytes, one.flops),
        cycle=(cycle.bytes, cycle.flops),
        plain_sums=of_pass,
        cycle_sums=of_pass + drafts,
        width=target.config.hidden_size,
        num_draft=drafter.num_draft,
    )
