"""What the device benchmark and the training benchmark measure; files of --output."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from specjax.core.choices import Choice
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
    kernels: int | None = absent()  # that a cycle launches


@dataclasses.dataclass(frozen=True, kw_only=True)
class CycleTime(Compilation):
    """A loop of cycles: its speed, and that over what the hardware allows."""

    seconds: float  # of a cycle
    plain_steps: float | None = absent()  # of as many rows, that a cycle takes; tau must be more
    read_bytes: int = absent(0)  # weights and remembered tokens that a cycle must read
    flops: int = absent(0)  # of its products with weights and of attention
    share_of_copy_bandwidth: float | None = absent()  # that reading these bytes reaches
    share_of_read_bandwidth: float | None = absent()
    share_of_peak: float | None = absent()  # of the arithmetic in bfloat16, of programs in it


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopTime(CycleTime):
    """A loop that verifies k guesses."""

    prefill_and_init_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchTime(CycleTime):
    """A loop of several rows."""

    rows: int
    name: str  # "plain", "verify" or that of a drafter
    num_draft: int


@dataclasses.dataclass(frozen=True)
class ContextTime:
    """A loop that verifies k guesses behind texts of these lengths."""

    num_draft: int
    lengths: tuple[int, ...]
    slots: int
    seconds: float  # of a cycle


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrafterTime(CycleTime):
    """The loop of a drafter with random weights; whatever it accepts, its time is the same."""

    draft_bytes: int  # that drafting reads
    share: float | None  # speedup over tau; None: no plain step was timed
    ideal_share: float  # the same, if reading were all that takes time


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartRun:
    """One process from its start to its first tokens; weights and programs go on side by side."""

    seconds: float  # to the first tokens
    process_seconds: float  # Python, imports, and the device
    weights_seconds: float  # from then on, until target and drafter were where they belong
    programs_seconds: float  # from then on, until all programs were there
    trace_seconds: float  # of all programs together, as the next
    compile_seconds: float  # or to fetch them from the cache
    cache_hits: int
    cache_misses: int
    first_seconds: float  # from when both were there
    again_seconds: float  # the same once more: time to first token of a running process


@dataclasses.dataclass(frozen=True)
class Start:
    """Starts with the weights on disk."""

    weight_bytes: int  # of the target's files
    prompt: int  # tokens
    written_seconds: float
    disk_bandwidth: float  # bytes a second, of the same files read by threads, from the disk
    memory_bandwidth: float  # the same once more, from the system's memory where they fit into it
    # "cold": nothing is known; "tuned": what autotuning found is; "warm": programs as well. The
    # files come from the disk in the first alone.
    runs: Mapping[str, StartRun]

    @property
    def autotune_seconds(self) -> float | None:
        """What compiling takes less where autotuning is known; None: not both were measured."""
        if not {"cold", "tuned"} <= self.runs.keys():
            return None
        return self.runs["cold"].compile_seconds - self.runs["tuned"].compile_seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """A random target, the drafter that is trained for it, and the batches."""

    raw: Mapping[str, Any]  # of the target, as in its config.json
    layers: int  # of the draft
    anchors: int  # blocks a row
    block: int = 16
    chunk: int = 0  # blocks whose logits exist at once; 0: as many as have room
    remat: str = "auto"  # see `DFlashObjective`
    rows: int = 1
    seq_len: int = 1024
    drafter: str = absent("dflash")  # or "eagle3", which has no anchors
    num_draft: int = absent(7)  # its steps

    @property
    def tokens(self) -> int:
        """The tokens of one step."""
        return self.rows * self.seq_len

    @property
    def updates(self) -> int:
        """The slots of all anchored blocks of one step."""
        return self.rows * self.anchors * self.block


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """A training step: as it is compiled, and, where it was run, its speed."""

    compile_s: float
    temporary_bytes: int
    argument_bytes: int  # weights and moments
    # Counted in the program, where it was compiled for devices that are not here.
    products: int | None = absent()  # operations of matrix products
    moved_bytes: int | None = absent()  # read and written
    kernels: int | None = absent()
    seconds: float | None = absent()
    samples_per_s: float | None = absent()  # texts
    tokens_per_s: float | None = absent()  # of the texts
    anchor_updates_per_s: float | None = absent()  # slots of anchored blocks
    # Of a step's products with weights, by part (`account.training_parts`), and of the optimizer.
    flops: Mapping[str, int] | None = absent()
    flops_per_s: float | None = absent()
    peak_flops: float | None = absent()  # a second, in bfloat16
    peak_is_measured: bool = absent(False)  # by one large product, as no data sheet is known
    share_of_peak: float | None = absent()
    # What each part adds to it: its operations over those of the peak in a whole step's time.
    share_of_peak_by_part: Mapping[str, float] | None = absent()
    peak_bytes: int | None = absent()  # of memory in use; None too if more was before


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRow(TrainingCost):
    """One of the training benchmark."""

    vocab: int
    anchors: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowsSpeed:
    """Steps whose rows are of one kind; counted are texts and their tokens, not what rows hold."""

    seconds: float  # of a step, the median
    filled: float  # the share of the rows' tokens that are real
    samples_per_s: float
    tokens_per_s: float
    anchor_updates_per_s: float  # slots of blocks at anchors that there are


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackingRow:
    """Steps of texts of many lengths, in rows of their own and several a row, timed in turns."""

    vocab: int
    anchors: int
    median: int  # of the lengths
    padded: RowsSpeed
    packed: RowsSpeed

    @property
    def gain(self) -> float:
        """Texts a second, packed over padded."""
        return self.packed.samples_per_s / self.padded.samples_per_s


@dataclasses.dataclass(frozen=True)
class TrainingReport:
    """The training benchmark."""

    settings: Mapping[str, Any]
    results: tuple[TrainingRow, ...]
    packing: tuple[PackingRow, ...] = absent(())


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
    command: str = absent("")
    commit: tuple[str, ...] = absent(())  # of the checkout, if it is one
    kernels: str = absent("")  # which a program for GPUs may run (`core.platform.Kernels`)
    choices: tuple[Choice, ...] = absent(())  # that were timed, for kernels="tuned"
    versions: Mapping[str, str] = absent({})
    platform_version: str = absent("")  # what JAX's client says of what is below it
    gpu: Mapping[str, str] = absent({})  # `core.machine.gpu_state` while plain steps ran
    skipped: tuple[str, ...] = ()  # for want of time
    no_room: tuple[str, ...] = absent(())  # for want of the device's memory
    stopped_in: str = absent("")  # the step that a signal or an error ended
    programs: Mapping[str, LoopTime] = dataclasses.field(default_factory=dict)
    drafters: Mapping[str, DrafterTime] = dataclasses.field(default_factory=dict)
    init_seconds: float | None = absent()
    weight_bytes: int = absent(0)  # that a step reads
    cache_bytes: int = absent(0)  # of the tokens that there are on average
    cache_bytes_all_slots: int = absent(0)
    buffer_bytes: int = absent(0)  # int32, that is copied and read
    copy_bandwidth: float | None = absent()  # bytes a second, reads plus writes
    read_bandwidth: float | None = absent()  # bytes a second, of a reduction
    peak_flops: float | None = absent()  # a second, of the device; None: not known, or not bfloat16
    product_bandwidth: float | None = absent()
    products_seconds: float | None = absent()
    pass_seconds: float | None = absent()
    training: DeviceTraining | None = absent()
    batches: tuple[BatchTime, ...] = absent(())
    contexts: tuple[ContextTime, ...] = absent(())
    start: Start | None = absent()
    transformers: Mapping[str, float] = absent({})  # way -> seconds of a token, the same sizes
    # Of "plain" or a drafter: scope -> seconds of a cycle that its operations took on the device.
    scopes: Mapping[str, Mapping[str, float]] = absent({})
    cannot: Mapping[str, str] = absent({})  # step -> why it could not be measured

    @property
    def plain(self) -> LoopTime | None:
        """The plain step, in a loop on the device."""
        return self.programs.get("device 0")

    @property
    def needed_bytes(self) -> int:
        """What a plain step must read."""
        return self.weight_bytes + self.cache_bytes
