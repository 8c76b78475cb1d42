"""What a checkpoint will need in memory, here or on devices that are not here."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from specjax.checkpoint import memory
from specjax.checkpoint.load import (
    download,
    locate,
    own_family,
    read_dtype,
    settle_weights,
)
from specjax.checkpoint.plan import Plan
from specjax.checkpoint.plan import plan as make_plan
from specjax.core.options import again, check, default_of, keywords, option, whole_numbers
from specjax.core.platform import here
from specjax.core.sharding import mesh_sizes
from specjax.jobs.models import Models
from specjax.lab.bench import training_plan
from specjax.lab.compiler import pods as costs
from specjax.lab.compiler.abstract import check as check_setup
from specjax.lab.compiler.chips import CHIPS, PRODUCTS, REACHED, TRAINING, Chip, parse
from specjax.lab.compiler.target import read_target, shrink
from specjax.lab.records import codec
from specjax.lab.records.compiled import Setup
from specjax.lab.records.device import TrainingSetup
from specjax.lab.records.planned import PodPlan, TrainingPlan
from specjax.models.shapes import SHAPES

_OF_PODS = (
    *("drafter", "num_draft", "rows", "slots", "context", "reached", "every", "output"),
    *("training", "seq_len", "anchors"),
)
_OF_DECODING = ("slots", "context", "reached", "kv_cache")
_OF_TRAINING = ("seq_len", "anchors")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of which checkpoint, and where it would lie."""

    target: str = option("demo:target", "Checkpoint directory, demo:target, or owner/name.")
    mesh: str = option("", "Devices to shard over, such as model:4; they need not be there.")
    dtype: Literal["float32", "bfloat16"] | None = again(Models, "dtype")
    quantize: Literal["int8", "fp8"] | None = again(Models, "quantize")
    weights: Literal["packed", "unpacked", "bfloat16", "float32"] | None = again(Models, "weights")
    kv_cache: Literal["int8", "fp8"] | None = again(Models, "kv_cache")
    topology: tuple[str, ...] = option(
        (),
        "Slices or machines, such as v5p:2x2x4 or v6e:16,h100:8: which mesh of them is best, and "
        "what a cycle costs there. The target may be a name of models/shapes.py, too.",
    )
    drafter: str = option("dflash", "With --topology, as of experiments.compile.")
    num_draft: int = option(15, "Its guesses a cycle.", least=1)
    rows: tuple[int | str, ...] = option((1, 8, 64), "Texts side by side, each a plan.")
    slots: int = option(4096, "Of the caches.", least=256)
    context: int = option(3072, "Tokens that are in them.", least=1)
    reached: float = option(REACHED, "Share of a memory's bandwidth that is reached.", least=0.01)
    training: bool = option(
        False, "Plan the training of a DFlash drafter; --rows are then the texts of a step."
    )
    seq_len: int = option(3072, "With --training, tokens of a text.", least=64)
    anchors: int = option(256, "With --training, blocks of a text.", least=1)
    every: bool = option(False, "All meshes, not the best alone.")
    output: str | None = option(None, "A .json file for the plans of --topology.", file=".json")

    def __post_init__(self) -> None:
        check(self)
        whole_numbers("rows", self.rows)
        if not 0.01 <= self.reached <= 1:
            raise ValueError(f"--reached={self.reached}: must be a share, from 0.01 to 1.")
        if self.training and self.num_draft >= self.seq_len:
            raise ValueError(
                f"--num_draft={self.num_draft}: blocks are longer than the {self.seq_len} tokens "
                "of a text."
            )
        if not self.training and self.context + self.num_draft + 1 > self.slots:
            raise ValueError(
                f"--slots={self.slots}: too few for --context={self.context} and the "
                f"{self.num_draft + 1} tokens of a cycle."
            )
        if not self.topology:
            self._refuse(_OF_PODS, "is about devices that are not here: name them with --topology")
            near = difflib.get_close_matches(self.target, SHAPES, 1, 0.85)
            if near and "/" not in self.target and not Path(self.target).exists():
                raise ValueError(
                    f"--target={self.target}: {near[0]} is a shape, which has no files to plan; "
                    "name devices with --topology, or give a directory."
                )
        elif self.training:
            if self.drafter != "dflash":
                raise ValueError(
                    f"--drafter={self.drafter}: --training is planned for dflash alone."
                )
            if self.anchors > self.seq_len:
                raise ValueError(
                    f"--anchors={self.anchors}: more than the {self.seq_len} tokens of a text."
                )
            self._refuse(_OF_DECODING, "is about decoding: leave --training out")
        else:
            self._refuse(_OF_TRAINING, "is about training: add --training")

    def _refuse(self, names: Iterable[str], why: str) -> None:
        """Raises ValueError where one of these fields was set."""
        for field in dataclasses.fields(self):
            if field.name in names:
                value = getattr(self, field.name)
                if _shown(value) != _shown(default_of(field)):
                    raise ValueError(f"--{field.name}={value} {why}, or leave it out.")


def _shown(value: Any) -> Any:
    """As a flag gives it, so that 1 and '1' are alike."""
    return tuple(map(str, value)) if isinstance(value, tuple) else value


@keywords(Options)
def pods(options: Options) -> list[PodPlan]:
    """Every mesh of every topology, for each number of rows.

    Raises:
      ValueError: in one line, on what is not known or does not fit together.
    """
    chosen = [(name, *parse(name)) for name in options.topology]
    refuse(options)
    sizes: dict[str, Any] = {n: getattr(options, n) for n in ("target", "num_draft", "slots")}
    setup = Setup(
        **sizes,
        drafter=options.drafter,
        context=options.context,
        kv_cache=options.kv_cache or "",
        dtype=options.dtype or "bfloat16",
    )
    try:
        setup, notes = shrink(setup)
        check_setup(setup)
    except ValueError as error:  # which speaks of the fields of another script
        raise ValueError(str(error).replace("--config.", "--")) from None
    plans = lambda rows, chip, devices: costs.plan(
        setup, chip, devices, rows, reached=options.reached
    )
    made = [
        PodPlan(setup, name, chip.name, devices, options.reached, found, without)
        for name, chip, devices, found, without in _per_topology(options, chosen, plans)
    ]
    for note in notes:
        print(note)
    if options.output is not None:
        codec.write_file(Path(options.output), made)
    return made


@keywords(Options)
def training(options: Options) -> list[TrainingPlan]:
    """Every mesh of every topology for training a DFlash drafter, for each number of texts.

    Raises:
      ValueError: in one line, on what is not known or does not fit together.
    """
    chosen = [(name, *parse(name)) for name in options.topology]
    refuse(options)
    if options.dtype == "float32":
        raise ValueError("--dtype=float32: training keeps the target in bfloat16.")
    try:
        raw = read_target(options.target, 0)
    except ValueError as error:
        raise ValueError(str(error).replace("--config.", "--")) from None
    setup = TrainingSetup(
        raw=raw,
        layers=5,
        anchors=options.anchors,
        block=options.num_draft + 1,
        seq_len=options.seq_len,
    )
    plans = lambda texts, chip, devices: training_plan.plan(
        dataclasses.replace(setup, rows=texts), chip, devices
    )
    made = [
        TrainingPlan(setup, name, chip.name, devices, found, without)
        for name, chip, devices, found, without in _per_topology(options, chosen, plans)
    ]
    if options.output is not None:
        codec.write_file(Path(options.output), made)
    return made


def _per_topology(
    options: Options,
    chosen: Iterable[tuple[str, Chip, int]],
    plans: Callable[[int, Chip, int], list[Any]],
) -> Iterator[tuple[str, Chip, int, tuple[Any, ...], tuple[int, ...]]]:
    """Each topology: of every number of rows the best mesh or all, and the rows that have none."""
    for name, chip, devices in chosen:
        found, without = list[Any](), list[int]()
        for rows in whole_numbers("rows", options.rows):
            every = plans(rows, chip, devices)
            found += every if options.every else every[:1]
            without += [] if every else [rows]
        yield name, chip, devices, tuple(found), tuple(without)


def refuse(options: Options) -> None:
    """Raises ValueError on fields that say nothing of devices that are not here."""
    for name in ("mesh", "quantize", "weights"):
        if getattr(options, name):
            raise ValueError(
                f"--{name}={getattr(options, name)}: leave it out with --topology, which tries "
                "meshes itself and counts weights as --dtype has them."
            )


def assumptions(chips: Iterable[str], reached: float) -> list[str]:
    """What the predicted times rest on, in lines."""
    found = [
        "Bytes and operations are the least of one device: weights, valid caches, logits. Memory "
        "is of weights and states, without activations.",
        f"Predicted: bytes over {reached:.2f} of the memory's bandwidth (0.66 is what a plain step "
        f"of an 8B model reached on one H100), or operations over {PRODUCTS:.2f} of the peak where "
        "that is more; sums over devices one behind the other, none hidden behind products.",
    ]
    return [*found, *_chips(chips), "Nothing of it was measured on these devices."]


def training_assumptions(chips: Iterable[str]) -> list[str]:
    """What the predicted times of training rest on, in lines."""
    return [
        "Products are 2 operations a weight and token for the target, 6 for the draft, 4 for the "
        "head. Memory is of weights, float32 masters, moments and gradients, without what passes "
        "hold in between (experiments.benchmark_training --topology compiles a step and says it).",
        f"Predicted: products over {TRAINING:.2f} of the peak (what one H100 reached), then what "
        "devices exchange, none of it hidden behind products: the target put together once, the "
        "draft twice, gradients once, in the masters' type.",
        *_chips(chips),
        "Nothing of it was measured on these devices.",
    ]


def _chips(names: Iterable[str]) -> list[str]:
    """What is assumed of chips, a line each."""
    found = []
    for chip in (CHIPS[name] for name in dict.fromkeys(names)):
        said = (
            f"{chip.name}: {chip.bandwidth / 1e12:.2f} TB/s, {chip.flops / 1e12:.0f} TFLOP/s, "
            f"links of {chip.link / 1e9:.0f} GB/s, {chip.hop * 1e6:.0f} us a doubling of the "
            "devices"
        )
        if chip.between:
            said += (
                f"; beyond {chip.machine} devices {chip.between / 1e9:.0f} GB/s and "
                f"{chip.hop_between * 1e6:.0f} us"
            )
        found.append(f"{said}.")
    return found


@keywords(Options)
def plan(options: Options) -> Plan:
    """The bytes of a checkpoint by part, in its files and on each device of a mesh.

    Raises:
      ValueError: in one line, on a checkpoint or a mesh that cannot be used.
    """
    dtype, packed = settle_weights(
        options.weights, read_dtype(options.dtype), options.quantize, here().name
    )
    family, name = own_family(options.target)
    path, is_repository = locate(name)
    if is_repository:
        path = download(name, None)
    return make_plan(
        Path(path),
        mesh_sizes(options.mesh),
        dtype=dtype,
        quantize=options.quantize,
        packed=packed,
        kv_cache=options.kv_cache,
        family_name=family,
    )


def table(made: Plan) -> list[str]:
    """Its lines."""
    columns = ("stored", "packed", "whole", "device")
    rows: list[tuple[str, ...]] = [("part", "in files", "packed there", "in memory", "a device")]
    for part in made.parts:
        rows.append((part.name, *(shown(getattr(part, what)) for what in columns)))
    rows.append(("weights", *(shown(made.total(what)) for what in columns)))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(cell.ljust(w) if n == 0 else cell.rjust(w) for n, (cell, w) in enumerate(cells))
        for cells in (list(zip(row, widths)) for row in rows)
    ]


def verdict(made: Plan) -> tuple[bool, str]:
    """Whether the weights fit a device of this machine, and that in a line."""
    need, free = made.total("device"), memory.free()
    caches = f"caches come on top, {shown(made.cache)} a token of a text on all devices together"
    if free is None:
        return True, f"The devices here do not say how much memory is free; {caches}."
    fits = need <= free
    said = f"fit: {shown(free - need)} a device are left" if fits else "do not fit"
    return fits, f"The weights {said} ({shown(free)} are free); {caches}."


def shown(size: int) -> str:
    """Bytes in the unit that suits them."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << power:
            return f"{size / (1 << power):.2f} {unit}"
    return f"{size} B"
