"""The report on a set of compiled programs, as JSON values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from specjax.compiler import hlo, traffic
from specjax.compiler.abstract import Abstract, Setup, abstract
from specjax.compiler.floor import floor, local_bytes, local_shape, weights
from specjax.compiler.programs import Compiled, compile_all, names
from specjax.compiler.topology import GIB, Topology
from specjax.core.cache import Cache
from specjax.core.platform import trace_for
from specjax.core.sharding import use_mesh

SCOPES = ("draft", "verify", "accept", "commit")


def plan(setup: Setup, topology: Topology, mesh: Mesh | None) -> tuple[Abstract, dict[str, int]]:
    """What is to be compiled, and the bytes of it that one device must hold.

    Raises:
      ValueError: if something does not fit together, or does not fit into a device's memory.
    """
    with trace_for(topology.platform, topology.cores):
        session = abstract(setup, mesh)
        cache, draft = states(session)
    drafter_net = getattr(session.drafter, "net", None)
    held = {
        "target weights": sum(map(local_bytes, weights(session.target.net).values())),
        "drafter weights": 0,
        "target cache": _split(cache, mesh, False),
        "drafter state": _split(draft, mesh, drafter_net is not None and drafter_net.replicated),
    }
    if drafter_net is not None:
        held["drafter weights"] = sum(map(local_bytes, weights(drafter_net).values()))
    total, room = sum(held.values()), topology.hbm_bytes
    if room is not None and total > room:
        parts = ", ".join(f"{k} {v / GIB:.1f}" for k, v in held.items() if v)
        raise ValueError(
            f"{setup.target} does not fit on {topology.name}: a device needs {total / GIB:.1f} GiB"
            f" ({parts}) and has {room / GIB:.1f}; use more chips along the model axis, fewer rows"
            " or fewer slots."
        )
    return session, held


def _split(state: Any, mesh: Mesh | None, whole: bool) -> int:
    """Bytes a device holds of a state whose first two axes are rows and key/value heads."""
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    if mesh is None:
        return total
    return total // (mesh.shape["data"] * (1 if whole else mesh.shape["model"]))


def make(
    setup: Setup,
    topology: Topology,
    mesh: Mesh | None,
    *,
    done: Callable[[Compiled], None] = lambda compiled: None,
    hlo_text: Callable[[str, str], None] = lambda name, text: None,
) -> dict[str, Any]:
    """Compiles and counts.

    Args:
      setup: what.
      topology: for which devices.
      mesh: of them, from ``topology.mesh``.
      done: is told of each program as it is ready.
      hlo_text: is handed each program's name and optimised HLO.

    Raises:
      ValueError: as `plan` does, and if the compiler runs out of a device's memory.
    """
    session, held = plan(setup, topology, mesh)
    report: dict[str, Any] = {
        "setup": dataclasses.asdict(setup),
        "topology": topology.name,
        "devices": len(topology.devices) if mesh is None else mesh.size,
        "chips": topology.num_chips,
        "device_kind": topology.kind,
        "hbm_bytes": topology.hbm_bytes,
        "mesh": {} if mesh is None else dict(mesh.shape),
        "jax": jax.__version__,
        "num_draft": session.drafter.num_draft,
        "rule": session.rule.name,
        "kv_repeat": session.target.config.kv_repeat,
        "held_bytes": held,
        "programs_of_a_generation": names(session),
        "programs": {},
    }
    with trace_for(topology.platform, topology.cores):
        for compiled in _in_one_line(compile_all(session, topology.platform, setup.programs)):
            report["programs"][compiled.name] = {
                "seconds": compiled.seconds,
                "memory": compiled.memory,
                "peak_bytes": compiled.peak_bytes,
            }
            text = compiled.executable.as_text()
            hlo_text(compiled.name, text)
            if compiled.name == "run":
                report["cycle"] = cycle(session, setup, compiled, text)
            done(compiled)
    return report


def _in_one_line(programs: Iterator[Compiled]) -> Iterator[Compiled]:
    """The same programs; that one does not fit after all is bad input."""
    try:
        yield from programs
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(f"The program does not fit: {str(error).splitlines()[0]}") from None


def cycle(session: Abstract, setup: Setup, run: Compiled, text: str) -> dict[str, Any]:
    """What one cycle, the body of the loop in the compiled program, costs one device."""
    module = hlo.parse(text)
    loop = module.main_loop
    if loop is None:
        raise RuntimeError("The compiled program has no loop of cycles.")
    body = loop.called("body")
    shapes = cache_shapes(session)
    squeezed = {tuple(d for d in s if d != 1) for s in shapes}
    tables = {
        tuple(d for d in local_shape(x) if d != 1)
        for net in (session.target.net, getattr(session.drafter, "net", None))
        if net is not None
        for x in weights(net).values()
        if len(x.shape) == 2
    }

    def kind(array: hlo.Array) -> str:
        if array.squeezed in squeezed:
            return "caches"
        return "weights" if array.squeezed in tables else "rest"

    moved = traffic.memory_bytes(module, body, kind)
    least = floor(session, setup.context)
    found = hlo.copies(module, body, sorted(shapes))
    flops = traffic.flops(module, body)
    total = sum(moved["read"].values()) + sum(moved["written"].values())
    return {
        "bytes_read": moved["read"],
        "bytes_written": moved["written"],
        "bytes": total,
        "floor": {**dataclasses.asdict(least), "bytes": least.num_bytes},
        "bytes_over_floor": total / least.num_bytes,
        "flops": flops,
        "flops_over_floor": flops / least.flops,
        "xla_bytes_accessed": run.cost.get("bytes accessed"),
        "xla_flops": run.cost.get("flops"),
        "collectives": traffic.collectives(module, body),
        "cache_shapes": sorted(shapes),
        "cache_copies": sum(c.times for c in found if not c.is_prefetch),
        "cache_prefetches": sum(c.times for c in found if c.is_prefetch),
        "num_instructions": module.num_instructions(body),
        "loops_of_unknown_length": sum(
            i.opcode == "while" and module.trip_count(i) is None for _, i, _ in module.walk(body)
        ),
        "scopes": {s: text.count(f"specjax/{s}") for s in SCOPES},
    }


def states(session: Abstract) -> tuple[Any, Any]:
    """The target's cache and the drafter's state, as shapes."""
    rows, slots = session.tokens.shape
    begin = lambda net, drafter: (net.init_cache(rows, slots), drafter.init(rows, slots))
    with use_mesh(session.target.mesh):
        return jax.eval_shape(begin, session.target.net, session.drafter)


def cache_shapes(session: Abstract) -> set[tuple[int, ...]]:
    """The shapes of one device's part of each kind of cache buffer."""
    mesh = session.target.mesh
    is_cache = lambda x: isinstance(x, Cache)
    shapes: set[tuple[int, ...]] = set()
    for cache in filter(is_cache, jax.tree.leaves(states(session), is_leaf=is_cache)):
        b, g, s, h = cache.k[0].shape
        if mesh is not None:
            b //= mesh.shape["data"]
            g //= 1 if cache.kv_axis is None else mesh.shape["model"]
        shapes.add((b, g, s, h))
    return shapes
