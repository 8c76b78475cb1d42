"""Compiles, ahead of time, every program that a generation with one size of buffers needs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from specjax import decode
from specjax.core.cache.base import num_bytes
from specjax.core.program import compiler_options, platform_of
from specjax.core.sharding import use_mesh
from specjax.lab.compiler.abstract import Abstract, shaped
from specjax.session import between
from specjax.session.slots import CHUNKS

MEMORY = {
    "arguments": "argument_size_in_bytes",
    "outputs": "output_size_in_bytes",
    "temporaries": "temp_size_in_bytes",
    "aliased": "alias_size_in_bytes",
    "code": "generated_code_size_in_bytes",
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program."""

    name: str
    seconds: dict[str, float]  # trace, lower, compile
    memory: dict[str, int]  # bytes a device, by kind; empty where the backend does not say
    cost: dict[str, float]  # XLA's own estimate: flops, bytes accessed
    executable: Any

    @property
    def peak_bytes(self) -> int:
        """Bytes of one device: what is given, made and kept at the same time, and the code."""
        m = self.memory
        return sum(m.values()) - 2 * m["aliased"] if m else 0


def names(abstract: Abstract) -> list[str]:
    """The programs of a generation: prompts of any length, texts that outgrow their buffers."""
    del abstract
    return ["init", *(f"prefill {width}" for width in CHUNKS), "run", "grow a layer"]


def compile_all(abstract: Abstract, only: str) -> Iterator[Compiled]:
    """Compiles them one by one; ``only`` is "all", or "run" (and "init", which is quick)."""
    net, drafter, rule = abstract.target.net, abstract.drafter, abstract.rule
    mesh = abstract.target.mesh
    options = compiler_options(platform_of(net).name)

    def build(name: str, function: Callable[..., Any], donate: int | None, *args: Any) -> Compiled:
        donated = () if donate is None else (donate,)
        jitted = jax.jit(function, donate_argnums=donated, compiler_options=options or None)
        with use_mesh(mesh):
            times = [time.perf_counter()]
            traced = jitted.trace(*args)
            times.append(time.perf_counter())
            lowered = traced.lower()
            times.append(time.perf_counter())
            executable = lowered.compile()
            times.append(time.perf_counter())
        stages = ("trace", "lower", "compile")
        seconds = {stage: times[i + 1] - times[i] for i, stage in enumerate(stages)}
        analysis = executable.memory_analysis()
        cost = executable.cost_analysis() or {}
        return Compiled(
            name=name,
            seconds=seconds,
            memory={} if analysis is None else {k: getattr(analysis, v) for k, v in MEMORY.items()},
            cost={k: float(cost[k]) for k in ("flops", "bytes accessed") if k in cost},
            executable=executable,
        )

    init = lambda *args: decode.init_state(*args)
    args = (net, drafter, abstract.tokens, abstract.length, abstract.done, None)
    if abstract.request.sampling.uses_counts:
        raise ValueError("Penalties are not compiled for; leave them out.")
    first = build("init", init, None, *args)
    yield first
    with use_mesh(mesh):
        shapes = jax.eval_shape(lambda *args: decode.init_state(*args), *args)
    # What one program hands on is placed where the next one finds it.
    places = first.executable.output_shardings
    state = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=None if mesh is None else place
        ),
        shapes,
        places,
    )
    number = shaped((), jnp.int32, mesh)
    if only == "all":
        for width in CHUNKS:
            prefill = lambda *args, width=width: decode.prefill(*args, width=width)
            yield build(f"prefill {width}", prefill, 2, net, drafter, state, number)

    def run(net: Any, drafter: Any, request: Any, state: Any, number: Any) -> Any:
        """The names of its arguments stand in the compiled program (`account`)."""
        return decode.run(net, drafter, rule, request, state, number)

    yield build("run", run, 3, net, drafter, abstract.request, state, number)
    if only == "all":
        slots = 2 * abstract.tokens.shape[1]
        largest = max(state.cache.layers, key=num_bytes)
        grow = lambda entry: between.grow_entry(entry, slots=slots)
        yield build("grow a layer", grow, None, largest)
