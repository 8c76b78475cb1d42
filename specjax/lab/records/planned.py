"""What decoding and training would cost on devices that are not here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from specjax.lab.records.compiled import Setup
from specjax.lab.records.device import TrainingSetup


@dataclasses.dataclass(frozen=True)
class Step:
    """A plain step or a cycle, of one device. Bytes and operations are the least."""

    bytes: float
    flops: float
    sums: float  # how many sums over the devices that share a model
    sent: float  # bytes of them
    seconds: float  # predicted


class Holding:
    """What one device holds of a plan."""

    held: Mapping[str, int]  # bytes, by name
    memory: int  # bytes that it has

    @property
    def need(self) -> int:
        """Bytes of a device, without what passes hold in between."""
        return sum(self.held.values())

    @property
    def fits(self) -> bool:
        return self.need <= self.memory


@dataclasses.dataclass(frozen=True)
class Planned(Holding):
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


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What a device exchanges with others along an axis of the mesh in a step."""

    bytes: float
    seconds: float  # predicted


@dataclasses.dataclass(frozen=True)
class PlannedTraining(Holding):
    """Training of a DFlash drafter on a mesh, one step."""

    mesh: Mapping[str, int]
    texts: int  # of a step, on all devices
    held: Mapping[str, int]  # bytes of one device, by name
    memory: int  # bytes of a device
    flops: Mapping[str, int]  # of one device, see `costs.account.training_parts`
    exchanges: Mapping[str, Exchange]  # by axis
    seconds: float  # predicted

    @property
    def sent(self) -> float:
        """Bytes that a device exchanges."""
        return sum(one.bytes for one in self.exchanges.values())


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """Of one slice, or some machines."""

    setup: TrainingSetup
    topology: str
    chip: str
    devices: int
    found: tuple[PlannedTraining, ...]  # of each number of texts the best mesh, or all of them
    without: tuple[int, ...] = ()  # numbers of texts that no mesh of all its devices is for
