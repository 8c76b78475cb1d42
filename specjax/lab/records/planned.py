"""What a target and a drafter would cost on devices that are not here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from specjax.lab.records.compiled import Setup


@dataclasses.dataclass(frozen=True)
class Step:
    """A plain step or a cycle, of one device. Bytes and operations are the least."""

    bytes: float
    flops: float
    sums: float  # how many sums over the devices that share a model
    sent: float  # bytes of them
    seconds: float  # predicted


@dataclasses.dataclass(frozen=True)
class Planned:
    """A target and a drafter on a mesh."""

    mesh: Mapping[str, int]
    rows: int  # of all devices
    held: Mapping[str, int]  # bytes of one device, by name
    memory: int  # bytes of a device
    plain: Step
    cycle: Step
    best_plain: float = (
        0.0  # seconds of a plain step on the mesh that is best for it; 0: on this one
    )

    @property
    def need(self) -> int:
        """Bytes of a device, without activations."""
        return sum(self.held.values())

    @property
    def fits(self) -> bool:
        return self.need <= self.memory

    @property
    def break_even(self) -> float:
        """How many plain steps a cycle costs: the tau that it has to beat."""
        return self.cycle.seconds / (self.best_plain or self.plain.seconds)

    @property
    def plain_rate(self) -> float:
        """Tokens a second of all rows without a drafter."""
        return self.rows / self.plain.seconds


@dataclasses.dataclass(frozen=True)
class PodPlan:
    """Of one slice, or some machines."""

    setup: Setup
    topology: str
    chip: str
    devices: int
    reached: float  # of the memory's bandwidth; assumed
    found: tuple[Planned, ...]  # of each number of rows the best mesh, or all of them
    without: tuple[int, ...] = ()  # numbers of rows that no mesh of all its devices is for
