"""What the device benchmark and the training benchmark measure; files of --output."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from specjax.lab.records.codec import absent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compilation:
    """What compiling one loop of cycles took and gave."""

    trace_seconds: float
    lower_seconds: float
    compile_seconds: float
    temp_bytes: int  # -1: the backend does not say
    loop_copies: int  # copies of cache-sized buffers in the body of the loop
    all_copies: int  # and in the whole program


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopTime(Compilation):
    """A loop that verifies k guesses."""

    seconds: float  # of a cycle
    prefill_and_init_seconds: float


@dataclasses.dataclass(frozen=True)
class ContextTime:
    """A loop that verifies k guesses behind texts of these lengths."""

    num_draft: int
    lengths: tuple[int, ...]
    slots: int
    seconds: float  # of a cycle


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrafterTime(Compilation):
    """The loop of a drafter with random weights; whatever it accepts, its time is the same."""

    seconds: float  # of a cycle
    plain_steps: float  # that a cycle takes
    draft_bytes: int  # that drafting reads
    share: float  # speedup over tau
    ideal_share: float  # the same, if reading were all that takes time


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """A random target, the DFlash drafter that is trained for it, and the batches."""

    raw: Mapping[str, Any]  # of the target, as in its config.json
    layers: int  # of the draft
    anchors: int  # blocks a row
    block: int = 16
    chunk: int = 16  # blocks that are run at once
    rows: int = 1
    seq_len: int = 1024

    @property
    def tokens(self) -> int:
        """The tokens of one step."""
        return self.rows * self.seq_len


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """A training step: as it is compiled, and, where it was run, its speed."""

    compile_s: float
    temporary_bytes: int
    argument_bytes: int  # weights and moments
    seconds: float | None = absent()
    tokens_per_s: float | None = absent()
    flops_per_s: float | None = absent()
    share_of_peak: float | None = absent()  # of the device's arithmetic in bfloat16
    peak_bytes: int | None = absent()  # of memory in use


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRow(TrainingCost):
    """One of the training benchmark."""

    vocab: int
    anchors: int


@dataclasses.dataclass(frozen=True)
class TrainingReport:
    """The training benchmark."""

    settings: Mapping[str, Any]
    results: tuple[TrainingRow, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceTraining(TrainingSetup, TrainingCost):
    """Training on the device."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceReport:
    """All that was measured so far of one model on one device; loops are "LOOP K"."""

    shape: str
    dtype: str
    slots: int
    cycles: int
    repeats: int
    device: str
    jax: str
    skipped: tuple[str, ...] = ()
    programs: Mapping[str, LoopTime] = dataclasses.field(default_factory=dict)
    drafters: Mapping[str, DrafterTime] = dataclasses.field(default_factory=dict)
    init_seconds: float | None = absent()
    weight_bytes: int = absent(0)  # that a step reads
    cache_bytes: int = absent(0)  # of the tokens that there are on average
    cache_bytes_all_slots: int = absent(0)
    copy_bandwidth: float | None = absent()  # bytes a second, reads plus writes
    product_bandwidth: float | None = absent()
    products_seconds: float | None = absent()
    pass_seconds: float | None = absent()
    training: DeviceTraining | None = absent()
    contexts: tuple[ContextTime, ...] = absent(())
    share_of_copy_bandwidth: float | None = absent()  # that a plain step reaches

    @property
    def plain(self) -> LoopTime | None:
        """The plain step, in a loop on the device."""
        return self.programs.get("device 0")

    @property
    def needed_bytes(self) -> int:
        """What a plain step must read."""
        return self.weight_bytes + self.cache_bytes
