"""A model of full depth from two reports of its first layers: what each layer more costs.

Layers of a family are alike, or come in periods: two reports that differ by whole periods say what
one costs, and the embeddings, the head and the drafter stay. What differs in few layers is that a
TPU keeps more of them in its on-chip memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from specjax.lab.records.compiled import CompileReport


@dataclasses.dataclass(frozen=True)
class Depth:
    """Of one device, at a number of layers. Bytes of a cycle, but for ``peak`` and ``held``."""

    layers: int
    bytes: float
    near: float  # temporaries that fit into a GPU's second-level cache, no part of ``bytes``
    floor: float
    flops: float
    kernels: float
    cache_copies: float
    weight_copies: float
    collectives: float  # how many
    sent: float  # bytes of them
    peak: float  # bytes of memory while it runs
    held: float  # of weights and states

    @property
    def over_floor(self) -> float:
        return self.bytes / self.floor


def of_report(report: CompileReport, layers: int) -> Depth:
    """The figures of a report on that many layers."""
    cycle, all_sent = report.cycle, report.cycle.collectives.values()
    return Depth(
        layers=layers,
        bytes=cycle.bytes,
        near=cycle.near_bytes,
        floor=cycle.floor.bytes,
        flops=cycle.flops,
        kernels=0 if cycle.kernels is None else cycle.kernels.total,
        cache_copies=cycle.cache_copies,
        weight_copies=cycle.weight_copies,
        collectives=sum(c.count for c in all_sent),
        sent=sum(c.bytes for c in all_sent),
        peak=report.run.peak_bytes,
        held=sum(report.held_bytes.values()),
    )


def at_depth(fewer: CompileReport, more: CompileReport, layers: int) -> Depth:
    """The figures at ``layers``, on the line through those of two reports.

    Raises:
      ValueError: in one line, if the reports differ in more than their layers, or not in them.
    """
    low, high = fewer.setup.layers, more.setup.layers
    if not 0 < low < high:
        raise ValueError(
            f"Of {fewer.setup.target} {low} and {high} layers were compiled: write two numbers,"
            " fewer first."
        )
    for name, one, two in _settings(fewer, more):
        if one != two:
            raise ValueError(f"Reports of different programs: {name} is {one!r} and {two!r}.")
    first, second = (vars(of_report(r, r.setup.layers)) for r in (fewer, more))
    along: Callable[[str], float] = lambda name: (
        first[name] + (second[name] - first[name]) * (layers - low) / (high - low)
    )
    return Depth(layers=layers, **{name: along(name) for name in first if name != "layers"})


def _settings(fewer: CompileReport, more: CompileReport) -> Iterator[tuple[str, object, object]]:
    for name, value in vars(fewer.setup).items():
        if name != "layers":
            yield f"setup.{name}", value, getattr(more.setup, name)
    for name in ("topology", "mesh", "jax", "rule"):
        yield name, getattr(fewer, name), getattr(more, name)
