"""The parts of the device benchmark, in steps of one figure or a few."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.checkpoint.load import Model
from specjax.core import choices, machine
from specjax.core.files import write_atomically
from specjax.core.options import whole_numbers
from specjax.core.platform import allowed_choices, allowed_kernels, here
from specjax.drafters import DFlash, Eagle3, NoDraft
from specjax.drafters.spec import Spec
from specjax.lab.bench import roofs, training_cost
from specjax.lab.bench.device import peer, starts
from specjax.lab.bench.device.drawn import random_net
from specjax.lab.bench.device.options import CONTEXT_GUESSES, WIDEST, Options
from specjax.lab.bench.device.profile import by_scope
from specjax.lab.bench.device.tune import Call, Tuner, calls
from specjax.lab.compiler.cycle import kernels_of
from specjax.lab.compiler.hlo import count_copies
from specjax.lab.costs import account
from specjax.lab.costs.parts import pass_alone, products_alone
from specjax.lab.costs.programs import CycleProgram, Silent, begins_at, memory_of
from specjax.lab.records import codec
from specjax.lab.records.device import (
    BatchTime,
    ContextTime,
    DeviceReport,
    DeviceTraining,
    DrafterTime,
    LoopTime,
    TrainingSetup,
)
from specjax.lab.view import device as view
from specjax.models.joining import joined
from specjax.models.shapes import SHAPES

_DRAFT_VOCABULARY = 32_000  # of the published EAGLE-3 drafters

Step = tuple[str, Callable[[], str]]  # its name, and what measures it and tells that in a line


def dflash(target: Model) -> DFlash:
    """Blocks of 16, 5 layers of the target's own sizes, 5 taps (the published 8B drafters)."""
    taps = min(5, target.config.num_layers)
    return _as_loaded(DFlash.fresh(target, num_draft=WIDEST, layers=5, num_taps=taps))


def eagle3(target: Model) -> Eagle3:
    """5 steps, one layer of the target's own sizes, a reduced head."""
    ids = np.arange(min(_DRAFT_VOCABULARY, target.config.vocab_size))
    return _as_loaded(Eagle3.fresh(target, num_draft=5, target_ids=ids))


def _as_loaded(spec: Any) -> Any:
    """A drafter whose matrices of one input are one, as where a checkpoint is read."""
    return dataclasses.replace(spec, net=joined(spec.net))


DRAFTERS: dict[str, Callable[[Model], Any]] = {"dflash": dflash, "eagle3": eagle3}


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
            device=machine.device_name(),
            jax=jax.__version__,
            command=plan.command,
            commit=machine.commits(),
            kernels=allowed_kernels(),
            versions={**machine.versions("specjax", "jaxlib", "flax"), **_choices_here()},
            platform_version=" ".join(jax.devices()[0].client.platform_version.split()),
            init_seconds=seconds,
            weight_bytes=floor.weight_bytes,
            cache_bytes=floor.cache_bytes,
            cache_bytes_all_slots=full.cache_bytes,
            peak_flops=roofs.peak_flops() if plan.dtype == "bfloat16" else None,
        )
        self.save()

    def note(self, **found: Any) -> None:
        """Adds to what was found."""
        self.found = dataclasses.replace(self.found, **found)

    def save(self) -> None:
        """Writes what was found so far."""
        if self.plan.output is not None:
            codec.write_file(Path(self.plan.output), self.found)

    def steps(self) -> Iterator[Step]:
        """Of all parts that are not skipped, in order of importance: time may run out."""
        plan = self.plan
        ks, batches = plan.ks, whole_numbers("batches", plan.batches)
        where = ("device", "host")
        loop = lambda k, where: lambda: self.time_loop(k, where)
        batch = lambda rows, name: lambda: self.time_batch(rows, name)
        parts: dict[str, list[Step]] = {
            "plain": [
                ("device loop, plain", loop(0, "device")),
                ("parts of a plain step", self.split_step),
                ("host loop, plain", loop(0, "host")),
            ],
            "verify": [(f"{w} loop, k = {k}", loop(k, w)) for w in where for k in ks],
            "cycles": [(name, lambda name=name: self.time_drafter(name)) for name in DRAFTERS],  # type: ignore[misc]
            "batches": [
                (f"{rows} rows, {name}", batch(rows, name))
                for rows in batches
                for name in ("plain", "verify", "dflash")
            ],
            "contexts": [("long texts", self.time_contexts)] if plan.contexts else [],
            "start": [("starts of a process", self.time_starts)],
            "training": [("training", self.time_training)],
            "transformers": [("transformers", self.time_transformers)],
            "profile": [(f"profile, {n}", self._profiled(n)) for n in ("plain", *DRAFTERS)],
        }
        kept = [steps for name, steps in parts.items() if name not in plan.skip]
        yield "bandwidth", self.measure_bandwidth  # what shares are of
        if plan.tune and "tune" not in plan.skip:
            yield from self._tuning()
        for steps in kept:
            yield from steps

    def _tuning(self) -> Iterator[Step]:
        """The shapes that cycles call, and the variants of each; the file holds what is known."""
        usual = dataclasses.replace(here(), kernels="attention", choices=None)
        tuner, found = Tuner(usual, repeats=9), list[Call]()
        specs: dict[str, Callable[[], Any]] = {
            "plain": NoDraft,
            "verify": lambda: Silent(num_draft=WIDEST),
            **{name: functools.partial(make, self.target) for name, make in DRAFTERS.items()},
        }

        def look(rows: int, name: str) -> str:
            spec, slots = specs[name](), self.plan.slots
            found.extend(calls(self.target, spec, rows=rows, slots=slots, on=tuner.on))
            return f"{len({call.key for call in found})} shapes"

        for rows in (1, *whole_numbers("batches", self.plan.batches)):
            for name in specs:
                yield f"shapes of {rows} rows, {name}", functools.partial(look, rows, name)

        def measure(call: Call) -> str:
            told = tuner.time(call)
            if tuner.known:
                device = choices.named(jax.devices()[0].device_kind)
                choices.add(choices.file(), device, tuner.known)
                self.note(choices=tuple(tuner.known))
            return told

        for call in tuner.in_order(found):
            yield f"tune {call.op.name}: {call.told}", functools.partial(measure, call)
        chosen = f"{len(tuner.known)} shapes have several ways, in {choices.file()}"
        yield "choices", lambda: chosen if tuner.known else "nothing to choose: one way of each"

    def measure_bandwidth(self) -> str:
        on_cpu = jax.default_backend() == "cpu"
        size = (self.plan.copy_mib or (128 if on_cpu else 4096)) * 2**20
        width = self.target.config.hidden_size
        self.note(
            buffer_bytes=size,
            copy_bandwidth=roofs.copy_bandwidth(size),
            read_bandwidth=roofs.read_bandwidth(size),
            product_bandwidth=roofs.product_bandwidth(size // 4, self.plan.dtype, width=width),
        )
        return view.bandwidths(self.found)

    def _program(self, drafter: Any, *, host_loop: bool = False) -> CycleProgram:
        slots = self.plan.slots
        prompt = range(1, begins_at(self.plan.slots) + 1)
        return CycleProgram(self.target, drafter, prompt, slots=slots, host_loop=host_loop)

    def _measured(
        self,
        program: CycleProgram,
        spec: Spec,
        *,
        plain: float | None,
        rows: int = 1,
        host_loop: bool = False,
    ) -> dict[str, Any]:
        """The fields of a `records.device.CycleTime`.

        Args:
          program: of the cycles.
          spec: the drafter as it was before it was bound.
          plain: seconds of a plain step of as many rows; None: this is one, or none was timed.
          rows: of the program.
          host_loop: whether the program is one cycle.
        """
        plan, found = self.plan, self.found
        seconds = program.seconds(cycles=plan.cycles, repeats=plan.repeats)
        # A cycle of these commits a token: guesses of random weights are wrong.
        context = begins_at(plan.slots) + min(plan.cycles, program.most_cycles) // 2
        sizes = {"rows": rows, "slots": plan.slots, "context": context}
        floor = account.cycle(self.target, spec, program.drafter, **sizes)
        reads, flops = floor.read_bytes / seconds, floor.flops / seconds
        over = lambda speed, roof: None if roof is None else speed / roof
        return dict(
            **_compilation(program, host_loop),
            seconds=seconds,
            plain_steps=None if plain is None else seconds / plain,
            read_bytes=floor.read_bytes,
            flops=floor.flops,
            share_of_copy_bandwidth=over(reads, found.copy_bandwidth),
            share_of_read_bandwidth=over(reads, found.read_bandwidth),
            share_of_peak=over(flops, found.peak_flops),
        )

    @property
    def _plain(self) -> float | None:
        """Seconds of a plain step of one row."""
        return None if self.found.plain is None else self.found.plain.seconds

    def time_loop(self, k: int, where: str) -> str:
        """The loop that verifies k guesses, on the "device" or with the "host" in between."""
        begin, name, on_host = time.perf_counter(), f"{where} {k}", where == "host"
        spec: Any = Silent(num_draft=k) if k else NoDraft()
        program = self._program(spec, host_loop=on_host)
        ready = time.perf_counter() - begin
        timed = LoopTime(
            **self._measured(program, spec, plain=self._plain, host_loop=on_host),
            prefill_and_init_seconds=ready - program.stages.total,
        )
        self.note(programs={**self.found.programs, name: timed})
        if self.plan.hlo_dir is not None:
            path = Path(self.plan.hlo_dir) / f"{name.replace(' ', '_')}.txt"
            write_atomically(path, program.compiled.as_text())
        if name == "device 0":
            self.note(gpu=self._state_during(program))
        return view.timed(timed)

    def _state_during(self, program: CycleProgram) -> dict[str, str]:
        """Clocks and power of the GPU at work: an idle one says little."""
        if jax.default_backend() != "gpu":
            return {}
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(program.seconds, cycles=self.plan.cycles, repeats=5)
            state = machine.gpu_state()
            running.result()
        return state

    def time_drafter(self, name: str) -> str:
        """The cycle of a trained kind of drafter."""
        spec, plain = DRAFTERS[name](self.target), self._plain
        program = self._program(spec)
        sizes = {"rows": 1, "slots": self.plan.slots, "context": begins_at(self.plan.slots)}
        reads = account.cycle(self.target, spec, program.drafter, **sizes).drafting_bytes
        measured = self._measured(program, spec, plain=plain)
        timed = DrafterTime(
            **measured,
            draft_bytes=reads,
            share=None if plain is None else plain / measured["seconds"],
            ideal_share=account.ideal_share(self.found.needed_bytes, reads),
        )
        self.note(drafters={**self.found.drafters, name: timed})
        return view.timed(timed)

    def time_batch(self, rows: int, name: str) -> str:
        """A step ("plain"), a verify pass ("verify") or a cycle ("dflash") of several rows."""
        makes: dict[str, Callable[[], Any]] = {
            "plain": NoDraft,
            "verify": lambda: Silent(num_draft=WIDEST),
            "dflash": lambda: dflash(self.target),
        }
        spec = makes[name]()
        program = CycleProgram(self.target, spec, slots=self.plan.slots, batch=rows)
        plains = (b.seconds for b in self.found.batches if (b.rows, b.name) == (rows, "plain"))
        measured = self._measured(program, spec, plain=next(plains, None), rows=rows)
        timed = BatchTime(**measured, rows=rows, name=name, num_draft=program.num_draft)
        self.note(batches=(*self.found.batches, timed))
        return view.timed(timed)

    def time_contexts(self) -> str:
        """Passes of one token and of several, behind texts that are all as long, or one of them."""
        plan = self.plan
        rows, slots = plan.context_rows, plan.context_slots
        for context in whole_numbers("contexts", plan.contexts):
            ragged = [context] + [min(256, context)] * (rows - 1)
            for k in (0, CONTEXT_GUESSES):
                for lengths in [[context] * rows] + (
                    [ragged] if ragged != [context] * rows else []
                ):
                    spec = Silent(num_draft=k) if k else NoDraft()
                    program = CycleProgram(
                        self.target, spec, slots=slots, batch=rows, lengths=lengths
                    )
                    seconds = program.seconds(cycles=8, repeats=plan.repeats)
                    timed = ContextTime(k, tuple(lengths), slots, seconds)
                    self.note(contexts=(*self.found.contexts, timed))
        return f"{len(self.found.contexts)} lengths"

    def time_starts(self) -> str:
        """From the start of a process to its first tokens, the weights on disk."""
        raw, where = SHAPES[self.plan.shape], self.plan.start_dir
        try:
            found = starts.measure(raw, self.target, dflash(self.target), where)
        except ValueError as error:
            self.note(cannot={**self.found.cannot, "start": str(error)})
            return f"not measured: {error}"
        self.note(start=found)
        return view.started(found)

    def time_transformers(self) -> str:
        """Plain decoding by Transformers, in a process of its own."""
        plan, raw = self.plan, SHAPES[self.plan.shape]
        try:
            found, lacking = peer.measure(raw, plan.dtype, tokens=64, seconds=plan.peer_seconds)
        except ValueError as error:
            found, lacking = {}, str(error)
        self.note(transformers=found)
        if lacking:
            self.note(cannot={**self.found.cannot, "transformers": lacking})
        told = [f"{way} {1e3 * seconds:.2f} ms a token" for way, seconds in found.items()]
        return ", ".join([*told, *([f"not all: {lacking}"] if lacking else [])])

    def _profiled(self, name: str) -> Callable[[], str]:
        return lambda: self.profile(name)

    def profile(self, name: str) -> str:
        """Time by named scope of a plain step or a drafter's cycle."""
        spec: Any = NoDraft() if name == "plain" else DRAFTERS[name](self.target)
        program, cycles = self._program(spec), min(self.plan.cycles, 16)
        with tempfile.TemporaryDirectory() as place:
            if self.plan.profile_dir is not None:
                place = str(Path(self.plan.profile_dir) / name)
            try:
                found = by_scope(program, cycles, Path(place))
            except ValueError as error:
                self.note(cannot={**self.found.cannot, f"profile, {name}": str(error)})
                return f"not measured: {error}"
        self.note(scopes={**self.found.scopes, name: found})
        return view.by_scope(found)

    def time_training(self) -> str:
        """Steps of DFlash training for this target, AdamW included."""
        raw, plan = SHAPES[self.plan.shape], self.plan
        setup = TrainingSetup(raw=raw, layers=5, anchors=plan.anchors, seq_len=plan.seq_len)
        cost = training_cost.measure(setup, steps=plan.repeats, target=self.target.net)
        training = DeviceTraining(**vars(setup), **vars(cost))
        self.note(training=training)
        return view.training_speed(training)

    def split_step(self) -> str:
        """The step taken apart: its products alone, then the whole pass, then the whole cycle."""
        net, steps, repeats = self.target.net, self.plan.cycles, self.plan.repeats
        products = products_alone(net).seconds(steps=steps, repeats=repeats)
        sizes = {"slots": self.plan.slots, "length": begins_at(self.plan.slots)}
        whole = pass_alone(net, **sizes).seconds(steps=steps, repeats=repeats)
        self.note(products_seconds=products, pass_seconds=whole)
        return f"products {1e3 * products:.3f} ms, whole pass {1e3 * whole:.3f} ms"


def _choices_here() -> dict[str, str]:
    """Which choices the kernels of this process are tuned by."""
    found = allowed_choices() if jax.default_backend() == "gpu" else None
    return {} if found is None else {"choices of kernels": found.digest}


def _compilation(program: CycleProgram, host_loop: bool) -> dict[str, Any]:
    """The fields of a `records.device.Compilation`: what compiling took and gave."""
    memory, text = memory_of(program.compiled), program.compiled.as_text()
    counted = [count_copies(text, shape) for shape in program.cache_shapes]
    return dict(
        trace_seconds=program.stages.trace,
        lower_seconds=program.stages.lower,
        compile_seconds=program.stages.compile,
        temp_bytes=-1 if memory is None else memory.temporaries,
        loop_copies=sum(inside for inside, _ in counted),
        all_copies=sum(whole for _, whole in counted),
        kernels=kernels_of(text, loop=not host_loop).total,
    )
