"""A random-weight model on an accelerator: its step against the memory's speed, part by part."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from specjax.checkpoint.load import Model
from specjax.core.files import write_atomically
from specjax.core.machine import device_name
from specjax.core.options import keywords, option, whole_numbers
from specjax.drafters import DFlash, Eagle3, NoDraft
from specjax.lab.bench import roofs, training_cost
from specjax.lab.compiler.hlo import count_copies
from specjax.lab.costs import account
from specjax.lab.costs.parts import pass_seconds, products_seconds
from specjax.lab.costs.programs import CycleProgram, Silent, begins_at, memory_of
from specjax.lab.records import codec
from specjax.lab.records.device import (
    Compilation,
    ContextTime,
    DeviceReport,
    DeviceTraining,
    DrafterTime,
    LoopTime,
    TrainingSetup,
)
from specjax.lab.view.device import show
from specjax.models import Frozen
from specjax.models import family as registered
from specjax.models.joining import join
from specjax.models.shapes import SHAPES

_DRAFT_VOCABULARY = 32_000  # of the published EAGLE-3 drafters
_WIDEST = 15  # guesses of `dflash`
_CONTEXT_GUESSES = 7  # that passes behind long texts verify


def dflash(target: Model) -> DFlash:
    """Blocks of 16, 5 layers of the target's own sizes, 5 taps (the published 8B drafters)."""
    taps = min(5, target.config.num_layers)
    return DFlash.fresh(target, num_draft=_WIDEST, layers=5, num_taps=taps)


def eagle3(target: Model) -> Eagle3:
    """5 steps, one layer of the target's own sizes, a reduced head."""
    ids = np.arange(min(_DRAFT_VOCABULARY, target.config.vocab_size))
    return Eagle3.fresh(target, num_draft=5, target_ids=ids)


DRAFTERS: dict[str, Callable[[Model], Any]] = {"dflash": dflash, "eagle3": eagle3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    shape: str = option("llama-3.1-8b", f"Of the random model: {', '.join(SHAPES)}.")
    dtype: Literal["bfloat16", "float32"] = option("bfloat16", "Of weights and cache.")
    num_draft: tuple[int | str, ...] = option((4, 8, 15), "Guesses a cycle, each a program.")
    tau: tuple[float | str, ...] = option((2, 3, 4, 5, 6.5), "Assumed of the trained drafters.")
    anchors: int = option(256, "Blocks a text in training (GPU only).", least=1)
    seq_len: int = option(3072, "Tokens of a text in training.", least=64)
    slots: int = option(2048, "Length of the cache.", least=256)
    cycles: int = option(100, "In one device call.", least=1)
    repeats: int = option(5, "Calls; medians are reported.", least=1)
    contexts: tuple[int | str, ...] = option(
        (), "Tokens in the cache, such as 256,1024,4096,16000: what a pass costs behind them."
    )
    context_slots: int = option(16384, "Length of the cache for --contexts.", least=256)
    context_rows: int = option(8, "Texts for --contexts, all so long or one of them.", least=1)
    copy_mib: int | None = option(
        None, "Size of the buffer copied. Default: 4096, on a CPU 128.", least=1
    )
    minutes: float = option(7.0, "After these, no further part is begun.", least=0.0)
    profile_dir: str | None = option(None, "A trace of one plain call goes there.", directory=True)
    hlo_dir: str | None = option(None, "The optimised programs go there.", directory=True)
    output: str | None = option(None, "A .json file for everything that was measured.", file="")

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"--shape={self.shape}: must be one of {', '.join(SHAPES)}.")
        if math.isnan(self.minutes):
            raise ValueError("--minutes=nan: must be a number of at least 0.")
        widest = max(_WIDEST, *self.ks)
        if not self.tau or not all(_is_tau(str(v)) for v in self.tau):
            raise ValueError("--tau: must be numbers of at least 1, such as 3,6.5.")
        if self.anchors > self.seq_len:
            raise ValueError(f"--anchors={self.anchors}: more than --seq_len={self.seq_len}.")
        room = self.context_slots - 8 * (_CONTEXT_GUESSES + 1)
        if self.contexts and max(whole_numbers("contexts", self.contexts)) > room:
            raise ValueError(f"--contexts: at most {room} tokens fit into --context_slots.")
        if begins_at(self.slots) + 2 * (widest + 1) > self.slots:
            raise ValueError(f"--slots={self.slots}: too few for {widest} guesses a cycle.")
        if self.shape.startswith("llama-3.1-") and jax.default_backend() == "cpu":
            raise ValueError(f"--shape={self.shape} on a CPU: try the script with --shape=tiny.")

    @property
    def ks(self) -> tuple[int, ...]:
        """The numbers of guesses."""
        return whole_numbers("num_draft", self.num_draft)


def _is_tau(text: str) -> bool:
    try:
        return 1 <= float(text) < math.inf
    except ValueError:
        return False


@keywords(Options)
def benchmark_device(options: Options) -> DeviceReport:
    """Measures a random-weight model on the first device, part by part, and prints what it finds.

    Options raise a ValueError, in one line, on what cannot be run.
    """
    console, begin = Console(highlight=False), time.perf_counter()
    console.print("[dim]   0.0 s  weights[/dim]")
    bench = Bench(options)
    for name, part in bench.parts():
        spent = time.perf_counter() - begin
        if spent > 60 * options.minutes:
            bench.note(skipped=(*bench.found.skipped, name))
            continue
        console.print(f"[dim]{spent:6.1f} s  {name}[/dim]")
        part()
        bench.save()
    bench.finish()
    show(console, bench.found, taus=tuple(map(str, options.tau)), minutes=options.minutes)
    return bench.found


class Bench:
    """The parts of the benchmark, and what they found."""

    def __init__(self, plan: Options) -> None:
        """Draws the weights."""
        self.plan, begin = plan, time.perf_counter()
        dtype = jnp.dtype(plan.dtype)
        net = random_net(SHAPES[plan.shape], dtype)
        jax.block_until_ready(net.params)
        seconds = time.perf_counter() - begin
        self.target = Model(net, None, (), None, None, plan.shape, np.dtype(dtype))
        floor, full = (
            account.plain_step(self.target, slots=plan.slots, context=context)
            for context in (begins_at(plan.slots) + plan.cycles // 2, plan.slots)
        )
        self.found = DeviceReport(
            **{f: getattr(plan, f) for f in ("shape", "dtype", "slots", "cycles", "repeats")},
            device=device_name(),
            jax=jax.__version__,
            init_seconds=seconds,
            weight_bytes=floor.weight_bytes,
            cache_bytes=floor.cache_bytes,
            cache_bytes_all_slots=full.cache_bytes,
        )
        self.save()

    def note(self, **found: Any) -> None:
        """Adds to what was found."""
        self.found = dataclasses.replace(self.found, **found)

    def save(self) -> None:
        """Writes what was found so far."""
        if self.plan.output is not None:
            codec.write_file(Path(self.plan.output), self.found)

    def parts(self) -> list[tuple[str, Callable[[], None]]]:
        """In order of importance: time may run out."""
        ks = self.plan.ks
        loops = [(f"device loop, k = {k}", lambda k=k: self.time_loop(k, "device")) for k in ks]
        hosts = [(f"host loop, k = {k}", lambda k=k: self.time_loop(k, "host")) for k in ks]
        return [
            ("bandwidth", self.measure_bandwidth),
            ("device loop, plain", lambda: self.time_loop(0, "device")),
            *loops,
            *[(name, lambda name=name: self.time_drafter(name)) for name in DRAFTERS],
            ("parts of a plain step", self.split_step),
            ("host loop, plain", lambda: self.time_loop(0, "host")),
            *hosts,
            *([("long texts", self.time_contexts)] if self.plan.contexts else []),
            *([("training", self.time_training)] if jax.default_backend() == "gpu" else []),
        ]

    def measure_bandwidth(self) -> None:
        on_cpu = jax.default_backend() == "cpu"
        size = (self.plan.copy_mib or (128 if on_cpu else 4096)) * 2**20
        width = self.target.config.hidden_size
        self.note(
            copy_bandwidth=roofs.copy_bandwidth(size),
            product_bandwidth=roofs.product_bandwidth(size // 4, self.plan.dtype, width=width),
        )

    def _program(self, drafter: Any, *, host_loop: bool = False) -> CycleProgram:
        slots = self.plan.slots
        prompt = range(1, begins_at(self.plan.slots) + 1)
        return CycleProgram(self.target, drafter, prompt, slots=slots, host_loop=host_loop)

    def _seconds(self, program: CycleProgram) -> float:
        return program.seconds(cycles=self.plan.cycles, repeats=self.plan.repeats)

    def time_loop(self, k: int, where: str) -> None:
        """The loop that verifies k guesses, on the "device" or with the "host" in between."""
        begin, name = time.perf_counter(), f"{where} {k}"
        program = self._program(Silent(num_draft=k) if k else NoDraft(), host_loop=where == "host")
        ready = time.perf_counter() - begin
        timed = LoopTime(
            **vars(compilation(program)),
            seconds=self._seconds(program),
            prefill_and_init_seconds=ready - program.stages.total,
        )
        self.note(programs={**self.found.programs, name: timed})
        if self.plan.hlo_dir is not None:
            path = Path(self.plan.hlo_dir) / f"{name.replace(' ', '_')}.txt"
            write_atomically(path, program.compiled.as_text())
        if name == "device 0" and self.plan.profile_dir is not None:
            with jax.profiler.trace(self.plan.profile_dir):
                program.seconds(cycles=min(self.plan.cycles, 16))

    def time_drafter(self, name: str) -> None:
        """The cycle of a trained kind of drafter."""
        spec = DRAFTERS[name](self.target)
        program = self._program(spec)
        seconds = self._seconds(program)
        sizes = {"rows": 1, "slots": self.plan.slots, "context": begins_at(self.plan.slots)}
        reads = account.cycle(self.target, spec, program.drafter, **sizes).drafting_bytes
        plain = self.found.programs["device 0"].seconds
        timed = DrafterTime(
            **vars(compilation(program)),
            seconds=seconds,
            plain_steps=seconds / plain,
            draft_bytes=reads,
            share=plain / seconds,
            ideal_share=account.ideal_share(self.found.needed_bytes, reads),
        )
        self.note(drafters={**self.found.drafters, name: timed})

    def time_contexts(self) -> None:
        """Passes of one token and of several, behind texts that are all as long, or one of them."""
        plan, found = self.plan, []
        rows, slots = plan.context_rows, plan.context_slots
        for context in whole_numbers("contexts", plan.contexts):
            ragged = [context] + [min(256, context)] * (rows - 1)
            for k in (0, _CONTEXT_GUESSES):
                for lengths in [[context] * rows] + (
                    [ragged] if ragged != [context] * rows else []
                ):
                    spec = Silent(num_draft=k) if k else NoDraft()
                    program = CycleProgram(
                        self.target, spec, slots=slots, batch=rows, lengths=lengths
                    )
                    seconds = program.seconds(cycles=8, repeats=plan.repeats)
                    found.append(ContextTime(k, tuple(lengths), slots, seconds))
        self.note(contexts=tuple(found))

    def time_training(self) -> None:
        """Steps of DFlash training for this target, AdamW included."""
        raw, plan = SHAPES[self.plan.shape], self.plan
        setup = TrainingSetup(raw=raw, layers=5, anchors=plan.anchors, seq_len=plan.seq_len)
        cost = training_cost.measure(setup, steps=plan.repeats, target=self.target.net)
        self.note(training=DeviceTraining(**vars(setup), **vars(cost)))

    def split_step(self) -> None:
        """The step taken apart: its products alone, then the whole pass, then the whole cycle."""
        net, steps, repeats = self.target.net, self.plan.cycles, self.plan.repeats
        self.note(
            products_seconds=products_seconds(net, steps=steps, repeats=repeats),
            pass_seconds=pass_seconds(
                net,
                slots=self.plan.slots,
                length=begins_at(self.plan.slots),
                steps=steps,
                repeats=repeats,
            ),
        )

    def finish(self) -> None:
        """The plain step against the floor."""
        found, plain = self.found, self.found.plain
        if plain is not None and found.copy_bandwidth is not None:
            reached = found.needed_bytes / plain.seconds / found.copy_bandwidth
            self.note(share_of_copy_bandwidth=reached)
        self.save()


def compilation(program: CycleProgram) -> Compilation:
    """What compiling it took and gave."""
    memory, text = memory_of(program.compiled), program.compiled.as_text()
    counted = [count_copies(text, shape) for shape in program.cache_shapes]
    return Compilation(
        trace_seconds=program.stages.trace,
        lower_seconds=program.stages.lower,
        compile_seconds=program.stages.compile,
        temp_bytes=-1 if memory is None else memory.temporaries,
        loop_copies=sum(inside for inside, _ in counted),
        all_copies=sum(whole for _, whole in counted),
    )


def random_net(raw: dict[str, Any], dtype: Any) -> Frozen:
    """A model with random weights that never were on the host; one small program a shape."""
    family = registered(raw["model_type"])
    config = family.read_config(raw)
    abstract = nnx.eval_shape(lambda: family(config, dtype=dtype, rngs=nnx.Rngs(0)))
    join(abstract)
    graphdef, state = nnx.split(abstract)
    leaves, treedef = jax.tree.flatten(state)
    key = jax.random.key(0)
    drawn = [
        draw(jax.random.fold_in(key, i), leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)
    ]
    return Frozen(params=jax.tree.unflatten(treedef, drawn), graphdef=graphdef, config=config)


def draw(key: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Gains around 1, matrices that keep the size of what they are applied to."""
    mean, scale = (1.0, 0.1) if len(shape) == 1 else (0.0, math.prod(shape[1:]) ** -0.5)
    return _normal(key, mean, scale, shape=shape, dtype=jnp.dtype(dtype))


def _draw_normal(key: Any, mean: Any, scale: Any, *, shape: tuple[int, ...], dtype: Any) -> Any:
    return (mean + scale * jax.random.normal(key, shape)).astype(dtype)


_normal = jax.jit(_draw_normal, static_argnames=("shape", "dtype"))
