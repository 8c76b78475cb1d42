"""Compiles, ahead of time, every program that a generation with one size of buffers needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from specjax import decode
from specjax.core.cache.base import num_bytes
from specjax.core.platform import follows_text
from specjax.core.program import compiler_options, platform_of
from specjax.core.sharding import pieces, use_mesh
from specjax.lab.compiler.abstract import Abstract, shaped
from specjax.lab.costs.programs import memory_of, stage
from specjax.lab.records.compiled import ProgramCost
from specjax.session import between
from specjax.session.slots import Passes


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program, and XLA's own estimate of what it moves and computes; None: it has none."""

    name: str
    cost: ProgramCost
    executable: Any
    xla_bytes: float | None
    xla_flops: float | None


def names(abstract: Abstract) -> list[str]:
    """The programs of a generation: prompts of any length, texts that outgrow their buffers."""
    grows = () if follows_text(abstract.target.net.platform) else ("grow a layer",)
    return ["init", *(f"prefill {width}" for width in widths(abstract)), "run", *grows]


def widths(abstract: Abstract) -> tuple[int, ...]:
    """Of the prefill passes of prompts of any length that fit into the buffers."""
    (rows, slots), mesh = abstract.tokens.shape, abstract.target.mesh
    rows //= 1 if mesh is None else pieces("batch", mesh)
    return Passes.of(slots, rows=rows, platform=abstract.target.net.platform).widths


def compile_all(abstract: Abstract, only: str) -> Iterator[Compiled]:
    """Compiles them one by one; ``only`` is "all", or "run" (and "init", which is quick)."""
    net, drafter, rule = abstract.target.net, abstract.drafter, abstract.rule
    mesh = abstract.target.mesh
    options = compiler_options(platform_of(net))

    def build(name: str, function: Callable[..., Any], donate: int | None, *args: Any) -> Compiled:
        donated = () if donate is None else (donate,)
        jitted = jax.jit(function, donate_argnums=donated, compiler_options=options or None)
        with use_mesh(mesh):
            stages, executable = stage(jitted, *args)
        found = executable.cost_analysis() or {}
        xla = [float(found[k]) if k in found else None for k in ("bytes accessed", "flops")]
        memory = memory_of(executable)
        cost = ProgramCost(stages, memory, 0 if memory is None else memory.peak)
        return Compiled(name, cost, executable, *xla)

    init = lambda *args: decode.init_state(*args)
    args = (net, drafter, abstract.tokens, abstract.length, abstract.done, abstract.counts)
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
        for width in widths(abstract):

            def prefill(net: Any, drafter: Any, state: Any, start: Any, width: int = width) -> Any:
                return decode.prefill(net, drafter, state, start, width=width)

            yield build(f"prefill {width}", prefill, 2, net, drafter, state, number)

    def run(net: Any, drafter: Any, request: Any, state: Any, number: Any) -> Any:
        """The names of its arguments stand in the compiled program (`account`)."""
        return decode.run(net, drafter, rule, request, state, number)

    yield build("run", run, 3, net, drafter, abstract.request, state, number)
    if "grow a layer" in names(abstract) and only == "all":
        slots = 2 * abstract.tokens.shape[1]
        largest = max(state.cache.layers, key=num_bytes)
        grow = lambda entry: between.grow_entry(entry, slots=slots)
        yield build("grow a layer", grow, None, largest)
