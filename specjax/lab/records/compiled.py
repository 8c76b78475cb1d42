"""What was compiled, and what the compiled programs cost: the report of experiments.compile.

Figures are of one device. What is None or empty is not known, in reports of older versions too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from specjax.core.options import option
from specjax.lab.records import codec

setting = functools.partial(option, config=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What is compiled."""

    target: str = setting(
        "llama-3.1-8b", "a directory with a config.json, or a name of models/shapes.py"
    )
    layers: int = setting(0, "of the target; 0: all of them")
    dtype: str = setting("bfloat16", "of weights, activations and caches")
    packed: str = setting(
        "", "mxfp4 or int4 (of a mixture the experts) or fp8: matrices of the target's layers"
    )
    kv_cache: str = setting("", "int8 or fp8: the target's keys and values in 8 bits")
    # The published DFlash checkpoints have 5 layers, 5 taps and blocks of 16 (15 guesses); EAGLE-3
    # has one layer.
    drafter: str = setting(
        "dflash",
        "Any of specjax.drafters.DRAFTERS, such as none, lm, dflash, eagle3, mtp or medusa, of the "
        "target's own width; or FILE.py:NAME",
    )
    num_draft: int = setting(15, "guesses of a cycle")
    draft_layers: int = setting(
        0, "of dflash, eagle3 and the heads of medusa; 0: as many as published"
    )
    draft_taps: int = setting(5, "of dflash")
    draft_vocab: int = setting(32000, "of eagle3")
    draft_latent: bool = setting(False, "of eagle3: latent attention of the target's sizes")
    draft_model: str = setting("llama-3.2-1b", "of lm: a directory or name, as the target's")
    replicate_drafter: bool = setting(False, "all of it on every device, as load_drafter places it")
    rows: int = setting(8, "texts side by side")
    slots: int = setting(4096, "length of the buffers")
    context: int = setting(
        3072, "tokens that are valid in the floor; buffers are 3/4 full on average"
    )
    min_confidence: float = setting(
        0.0,
        "of lm and dspark: guesses from the first less likely one on are not verified; counted is "
        "the cycle that verifies all. 0: always all",
    )
    temperature: float = setting(0.0, "0 is greedy")
    top_p: float = setting(1.0, "as of experiments.generate")
    top_k: int = setting(0, "as of experiments.generate, and so are the next four")
    min_p: float = setting(0.0, "0: off")
    repetition_penalty: float = setting(1.0, "1: off")
    presence_penalty: float = setting(0.0, "0: off")
    frequency_penalty: float = setting(0.0, "0: off")
    rule: str = setting("", "'': the best lossless one")
    kernels: str = setting(
        "attention",
        "on GPUs: attention of our own; pallas: products too; xla: XLA's alone; tuned: by shape",
    )
    split_k: str = setting("off", "on GPUs: products are whole, or xla: split as XLA likes")
    trips: int = setting(
        1, "of loops in the cycle that end when the program says so, and say no expected number"
    )
    programs: str = setting(
        "all", "run: the loop of cycles alone, not what feeds prompts and grows"
    )


@dataclasses.dataclass(frozen=True)
class Floor:
    """The least that one device must do in one cycle, given where the weights are."""

    weight_bytes: int  # of the target
    draft_bytes: int  # of the drafter's own weights, as often as its passes read them
    cache_bytes: int  # what is remembered of the committed tokens, by both
    logits_bytes: int  # of the block, float32
    flops: int  # of the products with weights and of attention to the committed tokens
    borrowed_bytes: int = 0  # of the target's head and layers, where the drafter reads them again
    bytes: int = 0  # of all kinds

    def __post_init__(self) -> None:
        weights = self.weight_bytes + self.drafting_bytes
        object.__setattr__(self, "bytes", weights + self.cache_bytes + self.logits_bytes)

    @property
    def read_bytes(self) -> int:
        """Weights and what is remembered: what must be read. Logits may stay near."""
        return self.weight_bytes + self.drafting_bytes + self.cache_bytes

    @property
    def drafting_bytes(self) -> int:
        """Weights that drafting reads, its own and the target's."""
        return self.draft_bytes + self.borrowed_bytes


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The kernels of one run of a computation."""

    total: int
    by_scope: Mapping[str, int]  # phases of the cycle, and "other"
    in_inner_loops: int  # of the total
    a_layer: float | None  # of the target's pass, between its layers; None: no two layers


@dataclasses.dataclass(frozen=True)
class Collective:
    """Communication of one kind."""

    count: int
    bytes: int
    # Of them those that kernels, or prefetches into a chip, run beside; None: not known.
    overlapped: int | None = codec.absent()


@dataclasses.dataclass(frozen=True)
class BranchCost:
    """One run of a branch; conditionals inside count with their dearest."""

    bytes: int
    flops: int
    kernels: int
    cache_copies: int
    weight_copies: int


@dataclasses.dataclass(frozen=True)
class Conditional:
    """A conditional that a cycle runs; one of its branches was counted."""

    op_name: str  # where it comes from in the traced program
    times: int
    counted: int
    branches: tuple[BranchCost, ...]


@dataclasses.dataclass(frozen=True)
class Loops:
    """Loops of a cycle that end when the program says so, counted alike."""

    count: int
    trips: int  # that each was counted
    # What that number comes from: the experts that are expected, the tokens in the cache, or
    # --config.trips.
    why: Literal["experts", "context", "trips"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CycleCost:
    """What the body of the loop of cycles costs. Bytes are those of main memory.

    ``bytes_read`` and ``bytes_written`` have the kinds "weights" and "caches", which are arguments
    of the program, "rest", and "near": what is made on the way and is no larger than a GPU's
    second-level cache. ``bytes`` is the sum without "near".
    """

    bytes_read: Mapping[str, int]
    bytes_written: Mapping[str, int]
    bytes: int
    near_bytes: int = 0
    floor: Floor
    bytes_over_floor: float
    flops: int
    flops_over_floor: float
    xla_bytes_accessed: float | None
    xla_flops: float | None
    kernels: Kernels | None = None
    collectives: Mapping[str, Collective]
    cache_copies: int
    cache_joins: int = 0
    cache_prefetches: int
    weight_copies: int = 0
    copied_bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    conditionals: tuple[Conditional, ...] = ()
    num_instructions: int
    loops_of_unknown_length: int
    loops: tuple[Loops, ...] = ()  # the same
    unknown: tuple[str, ...] = ()  # what is not known of the program, in words
    scopes: Mapping[str, int]  # phase -> how often the program's text names it


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefillCost:
    """What one prefill pass costs, behind ``context`` tokens in every row; as of `CycleCost`."""

    tokens: int  # that it feeds, of all rows
    bytes: int
    near_bytes: int
    floor: Floor
    bytes_over_floor: float
    flops: int
    flops_over_floor: float
    kernels: int
    collectives: Mapping[str, Collective]
    cache_copies: int


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a program by kind, as the compiler plans them."""

    arguments: int
    outputs: int
    temporaries: int
    aliased: int
    code: int

    @property
    def peak(self) -> int:
        """What is given, made and kept at the same time, and the code."""
        given = self.arguments + self.outputs - self.aliased
        return given + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Seconds:
    """What making a program took."""

    trace: float
    lower: float
    compile: float

    @property
    def total(self) -> float:
        return self.trace + self.lower + self.compile


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """What making a program took, and what it needs."""

    seconds: Seconds
    memory: Memory | None  # None: the backend does not say
    peak_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileReport:
    """A whole report."""

    setup: Setup
    topology: str
    devices: int
    chips: int
    device_kind: str
    hbm_bytes: int | None  # of a device; None: unknown
    mesh: Mapping[str, int]
    jax: str  # its version
    num_draft: int
    rule: str
    kv_repeat: int
    held_bytes: Mapping[str, int]
    programs_of_a_generation: tuple[str, ...]
    programs: Mapping[str, ProgramCost]
    cycle: CycleCost
    prefills: Mapping[str, PrefillCost] = dataclasses.field(default_factory=dict)  # by program

    @property
    def run(self) -> ProgramCost:
        """The program that runs cycles."""
        return self.programs["run"]


def read_report(value: Any, where: str) -> CompileReport:
    """Reads a report's JSON. Raises ValueError, in one line, if it is none."""
    kept = dict(value)
    programs = kept.get("programs")
    if isinstance(programs, Mapping):  # once {} stood where the backend did not say
        of = lambda p: {**p, "memory": p.get("memory") or None} if isinstance(p, Mapping) else p
        kept["programs"] = {name: of(program) for name, program in programs.items()}
    cycle = kept.get("cycle")
    if isinstance(cycle, Mapping) and isinstance(cycle.get("loops"), list):
        kept["cycle"] = {**cycle, "loops": [_since_why(found) for found in cycle["loops"]]}
    return codec.from_json(CompileReport, kept, where)


def _since_why(loops: Any) -> Any:
    """``why`` was ``expected`` once: there were the loops over experts, and others."""
    if not isinstance(loops, Mapping) or "expected" not in loops:
        return loops
    kept = {name: value for name, value in loops.items() if name != "expected"}
    return {"why": "experts" if loops["expected"] else "trips", **kept}


def load_report(path: Path, where: str) -> CompileReport:
    """Reads a report's file. Raises ValueError, in one line that begins with ``where``."""
    try:
        found = codec.read_file(path.expanduser())
    except FileNotFoundError:
        raise ValueError(f"{where}: there is no such file.") from None
    if not isinstance(found, dict) or not {"setup", "programs", "cycle"} <= found.keys():
        raise ValueError(f"{where}: is no report of experiments.compile --output.")
    return read_report(found, where)
