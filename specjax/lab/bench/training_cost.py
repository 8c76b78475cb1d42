"""What training a drafter takes: memory as the compiler plans it, and measured speed."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, SingleDeviceSharding
from rich.console import Console

from specjax.core import machine
from specjax.core.options import keywords, option, whole_numbers
from specjax.core.sharding import axes_of, mesh_sizes, named, of_parameter, pieces, use_mesh
from specjax.drafters import dflash, eagle3
from specjax.drafters.dflash.net import DFlashNet
from specjax.drafters.dflash.objective import DFlashObjective
from specjax.drafters.eagle3.net import Eagle3Net
from specjax.drafters.eagle3.objective import Eagle3Objective
from specjax.lab.bench import packing_cost, roofs
from specjax.lab.compiler import topology as topologies
from specjax.lab.compiler import whole
from specjax.lab.compiler.topology import Topology
from specjax.lab.costs import account
from specjax.lab.costs.programs import memory_of, stage
from specjax.lab.records import codec
from specjax.lab.records.device import TrainingCost, TrainingReport, TrainingRow, TrainingSetup
from specjax.lab.view.device import show_training
from specjax.models import Frozen
from specjax.models import family as registered
from specjax.models.layers.placed import place
from specjax.models.shapes import SHAPES as PUBLISHED
from specjax.train.objectives.base import Batch
from specjax.train.optimizer import make_optimizer
from specjax.train.room import check_remat
from specjax.train.state import Skeleton, TrainState, init_state, state_shardings
from specjax.train.step import make_step

SHAPES: dict[str, dict[str, int]] = {
    "small": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}
_DRAFT_LAYERS = {"small": 2, "8b": 5}
DRAFTERS = ("dflash", "eagle3")
_REDUCED = 32000  # tokens that an EAGLE-3 draft guesses among, as published ones do


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is trained, in all pairs of vocabulary and anchors."""

    shape: str = option(
        "small", f"Of the random target: small or 8b (Qwen3), or {', '.join(PUBLISHED)}."
    )
    anchors: tuple[int | str, ...] = option((16, 64, 256, 512), "Blocks a row.")
    vocab: tuple[int | str, ...] = option((4096, 32000, 151936), "Tokens of the target.")
    block: int = option(16, "Slots of a block.", least=2)
    chunk: int = option(0, "Blocks whose logits exist at once; 0: as many as have room.", least=0)
    remat: str = option("auto", "What is computed again: none, blocks, or auto: what has no room.")
    drafter: str = option("dflash", f"What is trained: {', '.join(DRAFTERS)}.")
    num_draft: int = option(7, "Steps of training-time test, with eagle3.", least=1)
    rows: int = option(1, "Texts a step.", least=1)
    seq_len: int = option(1024, "Tokens of a text.", least=64)
    time: bool = option(False, "Run each step too, on random weights.")
    steps: int = option(5, "Timed steps; the median counts.", least=1)
    pack: int = option(
        0,
        "With --time, instead: texts of many lengths with this median, in rows of their own and "
        "several a row, in turns.",
        least=0,
    )
    topology: str = option("local", "Devices to compile for, as of experiments.compile.")
    mesh: str = option("", "Of them, such as fsdp:8 or data:2,fsdp:4,model:2.")
    output: str | None = option(None, "A .json file for the figures.", file="")

    def __post_init__(self) -> None:
        if self.drafter not in DRAFTERS:
            raise ValueError(f"--drafter={self.drafter}: must be one of {', '.join(DRAFTERS)}.")
        check_remat(self.remat, "blocks" if self.drafter == "dflash" else "steps")
        if self.pack and not self.time:
            raise ValueError("--pack: give --time, too; it is measured.")
        if self.pack and self.drafter != "dflash":
            raise ValueError("--pack: leave --drafter out; it is measured with anchors.")
        if self.pack > self.seq_len:
            raise ValueError(
                f"--pack={self.pack}: half of the texts are longer, and a row has only "
                f"--seq_len={self.seq_len} tokens; give less."
            )
        if self.shape not in SHAPES and self.shape not in PUBLISHED:
            known = ", ".join((*SHAPES, *PUBLISHED))
            raise ValueError(f"--shape={self.shape}: must be one of {known}.")
        whole_numbers("vocab", self.vocab)
        largest = max(whole_numbers("anchors", self.anchors))
        if largest > self.seq_len and self.drafter == "dflash":
            raise ValueError(f"--anchors={largest}: more than the {self.seq_len} tokens of a text.")

    def setup(self, vocab: int, anchors: int) -> TrainingSetup:
        """One of the pairs."""
        return TrainingSetup(
            raw={**_raw(self.shape), "vocab_size": vocab},
            layers=_DRAFT_LAYERS.get(self.shape, 5),
            anchors=anchors,
            block=self.block,
            chunk=self.chunk,
            remat=self.remat,
            rows=self.rows,
            seq_len=self.seq_len,
            drafter=self.drafter,
            num_draft=self.num_draft,
        )


def _raw(shape: str) -> dict[str, Any]:
    return dict(PUBLISHED.get(shape) or {"model_type": "qwen3", **SHAPES[shape]})


@keywords(Options)
def benchmark_training(options: Options) -> TrainingReport:
    """Compiles, and where asked times, a step of each pair; prints what it finds."""
    console = Console(highlight=False)
    settings = {
        name: getattr(options, name)
        for name in ("shape", "block", "chunk", "remat", "rows", "seq_len", "drafter", "num_draft")
    }
    settings |= {"backend": jax.default_backend(), "jax": jax.__version__}
    settings |= {"topology": options.topology, "mesh": options.mesh}
    if options.topology != "local" and options.time:
        raise ValueError("--time: leave it out with --topology, whose devices are not here.")
    if options.pack and options.mesh:
        raise ValueError("--pack: leave --mesh out; it is measured on one device.")
    topology = topologies.find(options.topology)
    mesh = topology.mesh(**mesh_sizes(options.mesh)) if options.mesh else None
    report = TrainingReport(settings, ())
    every = options.anchors if options.drafter == "dflash" else (0,)
    for vocab, anchors in itertools.product(map(int, options.vocab), map(int, every)):
        setup = options.setup(vocab, anchors)
        if options.pack:
            compared = packing_cost.compare(Step(setup, None), setup, options.pack, options.steps)
            console.print(codec.to_json(compared))
            report = dataclasses.replace(report, packing=(*report.packing, compared))
            _keep(report, options.output)
            continue
        try:
            cost = measure(
                setup, steps=options.steps if options.time else 0, topology=topology, mesh=mesh
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise ValueError(f"It does not fit: {str(error).splitlines()[0]}") from None
        row = TrainingRow(vocab=vocab, anchors=anchors, **vars(cost))
        console.print(codec.to_json(row))
        report = dataclasses.replace(report, results=(*report.results, row))
        _keep(report, options.output)
    show_training(console, report)
    return report


def _keep(report: TrainingReport, output: str | None) -> None:
    if output:
        codec.write_file(Path(output), report)


def measure(
    setup: TrainingSetup,
    *,
    steps: int,
    target: Frozen | None = None,
    topology: Topology | None = None,
    mesh: Mesh | None = None,
) -> TrainingCost:
    """The compiled step's bytes, and its speed over ``steps`` of them (0: it is not run).

    A step is a whole one: both passes, gradients, clipping, AdamW on float32 masters.

    Args:
      setup: what is trained.
      steps: how many are timed; the median counts.
      target: random weights of ``setup.raw`` that are there already; None: they are drawn.
      topology: devices that are compiled for; None: those that are here.
      mesh: of them.
    """
    step = Step(setup, target, topology, mesh)
    with use_mesh(step.mesh):
        stages, compiled = stage(step.program, *step.shapes)
    memory = memory_of(compiled)
    cost = TrainingCost(
        compile_s=stages.total,
        temporary_bytes=-1 if memory is None else memory.temporaries,
        argument_bytes=-1 if memory is None else memory.arguments,
    )
    if topology is not None and topology.name != "local":
        cost = dataclasses.replace(cost, **vars(whole.count(compiled.as_text())))
    if not steps:
        return cost
    before = machine.peak_bytes()
    state, batch, net = step.arguments()
    seconds = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch, net))
        seconds.append(time.perf_counter() - began)
    median, known = statistics.median(seconds[1:]), roofs.peak_flops()
    peak = roofs.product_flops() if known is None else known
    flops = {**step.flops, "optimizer": step.optimizer_flops}
    shares = {n: f / median / peak for n, f in flops.items()}
    most = machine.peak_bytes()
    return dataclasses.replace(
        cost,
        seconds=median,
        samples_per_s=setup.rows / median,
        tokens_per_s=setup.tokens / median,
        anchor_updates_per_s=setup.updates / median if setup.anchors else None,
        flops=flops,
        flops_per_s=sum(flops.values()) / median,
        peak_flops=peak,
        peak_is_measured=known is None,
        share_of_peak=sum(shares.values()),
        share_of_peak_by_part=shares,
        # What was there before may have needed more: then the peak is not this step's.
        peak_bytes=most if most is not None and most > (before or 0) else None,
    )


class Step:
    """A training step of a drafter for a random target."""

    def __init__(
        self,
        setup: TrainingSetup,
        target: Frozen | None,
        topology: Topology | None = None,
        mesh: Mesh | None = None,
    ):
        """Nothing is computed."""
        self._setup, family = setup, registered(setup.raw["model_type"])
        config = family.read_config(setup.raw)
        draft, net, objective_of = _drafter(setup, config)
        self._make_target = lambda: family(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        self._make_draft = lambda: net(draft, dtype=jnp.float32, rngs=nnx.Rngs(1))
        self._target, self._vocab = target, config.vocab_size
        self._optimizer = make_optimizer(
            "adamw", lambda step: 1e-4, weight_decay=0.0, clip_norm=1.0
        )
        self._written_for = None if topology is None else topology.written_for
        module = nnx.eval_shape(self._make_draft)
        place(module, self._written_for, False)
        skeleton, masters = Skeleton.of(module)
        objective = objective_of(skeleton, draft, chunk=setup.chunk, remat=setup.remat)
        state = jax.eval_shape(lambda masters: init_state(masters, self._optimizer), masters)
        if target is None:
            graphdef, params = nnx.split(nnx.eval_shape(self._make_target))
            target = Frozen(params=params, graphdef=graphdef, config=config)
        sizes = (setup.rows, setup.seq_len)
        self.flops = account.training_parts(objective, masters, target, *sizes)
        numbers = sum(math.prod(x.shape) for x in masters.values())
        self.optimizer_flops = account.ADAMW * numbers
        batch, shardings = jax.eval_shape(self._batch), None
        target = target.on(self._written_for)
        self._whole, self._skeleton = (state, target), skeleton
        if mesh is not None:
            self.flops = {name: n // mesh.size for name, n in self.flops.items()}
            self.optimizer_flops //= mesh.size
            if setup.rows % (over := pieces("batch", mesh)):
                raise ValueError(
                    f"--rows={setup.rows}: the mesh splits a step's texts over {over}."
                )
            state, target = self.spread(mesh)
            shardings = jax.tree.map(lambda x: x.sharding, state)
            batch = jax.tree.map(lambda x: _at(x, named(mesh, (None, "batch"))), batch)
        elif topology is not None and topology.name != "local":
            one = SingleDeviceSharding(topology.devices[0])
            state, batch, target = jax.tree.map(lambda x: _at(x, one), (state, batch, target))
        self.mesh = topology.one if mesh is None and topology is not None else mesh
        self.program = make_step(objective, self._optimizer, shardings=shardings)
        self.shapes = (state, batch, target)

    def spread(self, mesh: Mesh | AbstractMesh) -> tuple[TrainState, Frozen]:
        """The shapes of what is trained and of the target, where a mesh has them."""
        state, target = self._whole
        state = jax.tree.map(_at, state, state_shardings(state, self._skeleton, mesh))
        return state, dataclasses.replace(target, params=_spread(target.params, mesh))

    def arguments(self) -> tuple[TrainState, Batch, Frozen]:
        """What the program is called with, drawn at random, each where the program has it."""
        masters = Skeleton.of(jax.jit(self._make_draft)())[1]
        target = self._target or Frozen.of(jax.jit(self._make_target)())
        drawn = init_state(masters, self._optimizer), self._batch(), target.on(self._written_for)
        put = lambda x, shape: x if shape.sharding is None else jax.device_put(x, shape.sharding)
        found: tuple[TrainState, Batch, Frozen] = jax.tree.map(put, drawn, self.shapes)
        return found

    def _batch(self) -> Batch:
        """One micro-batch of random text [1, B, T], all of it labels."""
        shape = (1, self._setup.rows, self._setup.seq_len)
        tokens = jax.random.randint(jax.random.key(2), shape, 0, self._vocab - 1)
        lengths = jnp.full(shape[:2], self._setup.seq_len, jnp.int32)
        return Batch(tokens, jnp.ones(shape, jnp.bool_), lengths)


def _drafter(setup: TrainingSetup, target: Any) -> tuple[Any, Any, Callable[..., Any]]:
    """The config of what is trained, its network's class, and what makes the objective."""
    if setup.drafter == "eagle3":
        rows = min(_REDUCED, target.vocab_size)
        ids = jnp.arange(rows, dtype=jnp.int32)
        of_steps = functools.partial(Eagle3Objective, target_ids=ids, num_draft=setup.num_draft)
        return eagle3.fresh_config(target, draft_vocab_size=rows), Eagle3Net, of_steps
    taps = min(5, target.num_layers - 1)
    draft = dflash.fresh_config(target, setup.block - 1, layers=setup.layers, num_taps=taps)
    return draft, DFlashNet, functools.partial(DFlashObjective, anchors=setup.anchors)


def _at(x: Any, place: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


def _spread(params: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Frozen weights where loading puts them."""
    found = []
    for path, parameter in nnx.to_flat_state(params):
        value = parameter.get_value()
        place = of_parameter(mesh, axes_of(parameter), value.shape)
        name = ".".join(map(str, path))
        for size, axis in zip(value.shape, place.spec, strict=True):
            over = 1 if axis is None else mesh.shape[axis]
            if size % over:
                raise ValueError(f"--mesh: {name} {list(value.shape)} does not fall into {over}.")
        found.append((path, parameter.replace(_at(value, place))))
    return nnx.from_flat_state(found)
