"""The account of one cycle: what the body of the loop in the compiled program costs one device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from specjax.core.cache import Cache
from specjax.lab.compiler import branches, hlo, kernels, traffic
from specjax.lab.compiler.abstract import Abstract, Setup, states
from specjax.lab.compiler.floor import floor
from specjax.lab.compiler.origins import Origins, aliased
from specjax.lab.compiler.programs import Compiled
from specjax.lab.compiler.topology import Topology

SCOPES = ("draft", "verify", "accept", "commit")


def cycle(
    session: Abstract, setup: Setup, topology: Topology, run: Compiled, text: str
) -> dict[str, Any]:
    """The account of a cycle as JSON values. Bytes are those of main memory.

    ``bytes_read`` and ``bytes_written`` have the kinds "weights" and "caches", which are arguments
    of the program, "rest", and "near": what is made on the way and is no larger than a GPU's
    second-level cache. ``bytes`` is the sum without "near".
    """
    module = hlo.parse(text, setup.trips)
    loop = module.main_loop
    if loop is None:
        raise RuntimeError("The compiled program has no loop of cycles.")
    body, origins, kind_of = loop.called("body"), Origins(module), argument_kinds(session)

    def kind(home: hlo.Computation, value: hlo.Instruction, index: int) -> str:
        origin = origins.of(home, value, index)
        found = "rest" if origin.moved else kind_of(origin.argument)
        size = value.arrays[index].nbytes
        fits = topology.cache_bytes is not None and size <= topology.cache_bytes
        return "near" if found == "rest" and fits else found

    module, choices = branches.settle(module, body, kind, origins)
    moved = traffic.memory_bytes(module, body, kind)
    if not moved["read"].get("weights"):
        raise RuntimeError("The compiled program does not say which of its arguments are weights.")
    ways = moved["read"], moved["written"]
    total = sum(size for way in ways for name, size in way.items() if name != "near")
    least = floor(session, setup.context)
    flops = traffic.flops(module, body)
    found = [(kind_of(c.argument), c) for c in kernels.copies(module, body, origins)]
    copied = {
        name: [c for k, c in found if k == name and not c.is_prefetch]
        for name in ("weights", "caches")
    }
    launched = kernels.count(module, body, origins, SCOPES)
    return {
        "bytes_read": moved["read"],
        "bytes_written": moved["written"],
        "bytes": total,
        "near_bytes": sum(way.get("near", 0) for way in ways),
        "floor": {**dataclasses.asdict(least), "bytes": least.num_bytes},
        "bytes_over_floor": total / least.num_bytes,
        "flops": flops,
        "flops_over_floor": flops / least.flops,
        "xla_bytes_accessed": run.cost.get("bytes accessed"),
        "xla_flops": run.cost.get("flops"),
        "kernels": {
            "total": launched.total,
            "a_layer": launched.a_layer,
            "in_inner_loops": launched.in_inner_loops,
            "by_scope": launched.by_scope,
        },
        "collectives": traffic.collectives(module, body),
        "cache_copies": sum(c.times for c in copied["caches"] if not c.is_join),
        "cache_joins": sum(c.times for c in copied["caches"] if c.is_join),
        "cache_prefetches": sum(c.times for k, c in found if k == "caches" and c.is_prefetch),
        "weight_copies": sum(c.times for c in copied["weights"]),
        "copied_bytes": {k: sum(c.times * c.num_bytes for c in copied[k]) for k in copied},
        "conditionals": [_conditional(choice, kind_of) for choice in choices],
        "num_instructions": module.num_instructions(body),
        "loops_of_unknown_length": num_unknown_loops(module, body),
        "unknown": unknown(module, body, choices, topology, setup),
        "scopes": {s: text.count(f"specjax/{s}") for s in SCOPES},
    }


def _conditional(choice: branches.Choice, kind_of: Callable[[str], str]) -> dict[str, Any]:
    """A conditional as JSON values; bytes, copies and kernels of each branch are for one run."""

    def values(branch: branches.Branch) -> dict[str, int]:
        copied = {
            f"{one}_copies": sum(n for name, n in branch.copied.items() if kind_of(name) == kinds)
            for one, kinds in (("cache", "caches"), ("weight", "weights"))
        }
        return {"bytes": branch.bytes, "flops": branch.flops, "kernels": branch.kernels, **copied}

    return {
        "op_name": choice.op_name,
        "times": choice.times,
        "counted": choice.counted,
        "branches": [values(branch) for branch in choice.branches],
    }


def argument_kinds(session: Abstract) -> Callable[[str], str]:
    """Name of an argument of the program that runs cycles -> "weights", "caches" or "rest"."""
    is_cache = lambda x: isinstance(x, Cache)
    with_path = jax.tree_util.tree_flatten_with_path
    caches: set[str] = set()
    for field, state in zip(("cache", "draft"), states(session)):
        for path, leaf in with_path(state, is_leaf=is_cache)[0]:
            if is_cache(leaf):
                arrays = [(more, x) for more, x in with_path(leaf)[0] if x.ndim > 1]  # no lengths
                inside = [jax.tree_util.keystr((*path, *more)) for more, _ in arrays]
                caches |= {f"state.{field}{name}" for name in inside}

    def kind(argument: str) -> str:
        if argument in caches:
            return "caches"
        return "weights" if argument.startswith(("net.", "drafter.")) else "rest"

    return kind


def num_unknown_loops(module: hlo.Module, name: str) -> int:
    return sum(
        i.opcode == "while" and module.trip_count(i) is None for _, i, _ in module.walk(name)
    )


def unknown(
    module: hlo.Module,
    name: str,
    choices: Sequence[branches.Choice],
    topology: Topology,
    setup: Setup,
) -> list[str]:
    """What the account does not know of this program, in words."""
    found = ["No time was measured: these are counts."]
    executed = [i for _, i, _ in module.walk(name)]
    loops = num_unknown_loops(module, name)
    if loops:
        found.append(
            f"{loops} loops in the cycle end when the program says so; each was counted"
            f" {setup.trips} times (--config.trips)."
        )
    if choices:
        found.append(
            f"Of each of {len(choices)} conditionals one branch runs; that of the most bytes was"
            " counted, and all stand apart."
        )
    calls = [i for i in executed if i.opcode == "custom-call" and aliased(i)]
    if calls:
        found.append(
            f"{len(calls)} kernels of our own update buffers in place; what they read of those was"
            " not counted."
        )
    if topology.platform == "gpu":
        found.append(
            "Nothing was tuned, which takes a GPU: tiles, splits and libraries differ there, and so"
            " may the number of kernels."
        )
    if topology.cache_bytes is not None:
        found.append(
            "Temporaries that fit into the second-level cache were taken to stay there; weights and"
            " caches were not."
        )
    return found
