"""The account of one cycle: what the body of the loop in the compiled program costs one device."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

import jax

from specjax.core.cache import Cache
from specjax.core.trips import only_updates, reads_in_part, stated
from specjax.lab.compiler import branches, hlo, kernels, traffic
from specjax.lab.compiler.abstract import Abstract
from specjax.lab.compiler.origins import Origins, aliased
from specjax.lab.compiler.programs import Compiled
from specjax.lab.compiler.topology import Topology
from specjax.lab.records.compiled import (
    BranchCost,
    Conditional,
    CycleCost,
    Kernels,
    Loops,
    Setup,
)

SCOPES = ("draft", "verify", "accept", "commit")
_WHY = {
    "experts": "as is expected if each token draws for itself",
    "context": "tiles of a cache of --config.context tokens",
    "trips": "--config.trips",
}


def cycle(
    session: Abstract, setup: Setup, topology: Topology, run: Compiled, text: str
) -> CycleCost:
    """The account of a cycle, of the optimised program's ``text``."""
    module = hlo.parse(text, setup.trips, setup.context)
    loop = module.main_loop
    if loop is None:
        raise RuntimeError("The compiled program has no loop of cycles.")
    body, origins, kind_of = loop.called("body"), Origins(module), argument_kinds(session)
    kind = sort_arrays(origins, kind_of, topology)
    module, choices = branches.settle(module, body, kind, origins)
    moved = traffic.memory_bytes(module, body, kind)
    if not moved.read.get("weights"):
        raise RuntimeError("The compiled program does not say which of its arguments are weights.")
    least, flops = session.floor(setup.context), traffic.flops(module, body)
    copied = Copied.of(kernels.copies(module, body, origins), kind_of)
    return CycleCost(
        bytes_read=moved.read,
        bytes_written=moved.written,
        bytes=moved.far,
        near_bytes=moved.near,
        floor=least,
        bytes_over_floor=moved.far / least.bytes,
        flops=flops,
        flops_over_floor=flops / least.flops,
        xla_bytes_accessed=run.xla_bytes,
        xla_flops=run.xla_flops,
        kernels=kernels.count(module, body, origins, SCOPES),
        collectives=traffic.collectives(module, body),
        cache_copies=sum(c.times for c in copied.caches if not c.is_join),
        cache_joins=sum(c.times for c in copied.caches if c.is_join),
        cache_prefetches=copied.prefetches,
        weight_copies=sum(c.times for c in copied.weights),
        copied_bytes={
            "weights": sum(c.times * c.num_bytes for c in copied.weights),
            "caches": sum(c.times * c.num_bytes for c in copied.caches),
        },
        conditionals=tuple(_conditional(choice, kind_of) for choice in choices),
        num_instructions=module.num_instructions(body),
        loops_of_unknown_length=sum(loop.count for loop in unknown_loops(module, body)),
        loops=unknown_loops(module, body),
        unknown=tuple(unknown(module, body, choices, topology, setup)),
        scopes={s: text.count(f"specjax/{s}") for s in SCOPES},
    )


def sort_arrays(
    origins: Origins, kind_of: Callable[[str], str], topology: Topology
) -> traffic.Kind:
    """Sorts arrays as `CycleCost` does; ``kind_of`` is `argument_kinds`."""

    def kind(home: hlo.Computation, value: hlo.Instruction, index: int) -> str:
        origin = origins.of(home, value, index)
        found = "rest" if origin.moved else kind_of(origin.argument)
        size = value.arrays[index].nbytes
        fits = topology.cache_bytes is not None and size <= topology.cache_bytes
        return "near" if found == "rest" and fits else found

    return kind


def kernels_of(text: str, *, loop: bool = True) -> Kernels:
    """The kernels of a cycle of an optimised program's ``text``; see `kernels.count`.

    Args:
      text: of a program that `specjax.decode` ran, compiled for where it runs.
      loop: whether it runs many cycles, and one is the body of its loop; else it is one.

    Raises:
      RuntimeError: if there is no such loop.
    """
    module = hlo.parse(text)
    name, main = module.entry, module.main_loop
    if loop:
        if main is None:
            raise RuntimeError("The compiled program has no loop of cycles.")
        name = main.called("body")
    origins = Origins(module)

    def kind(home: hlo.Computation, value: hlo.Instruction, index: int) -> str:
        origin = origins.of(home, value, index)
        is_argument = origin.argument.startswith(("net.", "drafter.", "state.cache", "state.draft"))
        return "weights" if is_argument and not origin.moved else "rest"

    module, _ = branches.settle(module, name, kind, origins)
    return kernels.count(module, name, origins, SCOPES)


@dataclasses.dataclass(frozen=True)
class Copied:
    """What a cycle copies of the program's arguments."""

    weights: list[kernels.Copy]
    caches: list[kernels.Copy]
    prefetches: int  # of caches; none of the above

    @classmethod
    def of(cls, copies: Sequence[kernels.Copy], kind_of: Callable[[str], str]) -> Copied:
        weights, caches = (
            [c for c in copies if kind_of(c.argument) == kind] for kind in ("weights", "caches")
        )
        return cls(
            weights=[c for c in weights if not c.is_prefetch],
            caches=[c for c in caches if not c.is_prefetch],
            prefetches=sum(c.times for c in caches if c.is_prefetch),
        )


def _conditional(choice: branches.Choice, kind_of: Callable[[str], str]) -> Conditional:
    """What each of its branches costs, for one run."""
    of = lambda branch, kind: sum(n for x, n in branch.copied.items() if kind_of(x) == kind)
    return Conditional(
        choice.op_name,
        choice.times,
        choice.counted,
        tuple(
            BranchCost(b.bytes, b.flops, b.kernels, of(b, "caches"), of(b, "weights"))
            for b in choice.branches
        ),
    )


def argument_kinds(session: Abstract) -> Callable[[str], str]:
    """Name of an argument of the program that runs cycles -> "weights", "caches" or "rest"."""
    is_cache = lambda x: isinstance(x, Cache)
    with_path = jax.tree_util.tree_flatten_with_path
    caches: set[str] = set()
    for field, state in zip(("cache", "draft"), session.states):
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


def unknown_loops(module: hlo.Module, name: str) -> tuple[Loops, ...]:
    """The loops whose length the program decides when it runs, by how often they were counted."""
    loops = (i for _, i, _ in module.walk(name) if i.opcode == "while")
    found = collections.Counter(
        (module.runs(i), said.why if (said := stated(i.op_name)) else "trips")
        for i in loops
        if module.trip_count(i) is None
    )
    return tuple(Loops(count, *how) for how, count in sorted(found.items()))


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
    for loops in unknown_loops(module, name):
        found.append(
            f"{loops.count} loops in the cycle end when the program says so; each was counted"
            f" {loops.trips} times ({_WHY[loops.why]})."
        )
    if choices:
        found.append(
            f"Of each of {len(choices)} conditionals one branch runs; that of the most bytes was"
            " counted, and all stand apart."
        )
    ours = [i for i in executed if i.opcode == "custom-call"]
    calls = [i for i in ours if aliased(i) and not only_updates(i.op_name)]
    if calls:
        found.append(
            f"{len(calls)} kernels of our own update buffers in place; what they read of those was"
            " not counted."
        )
    partly = sum(reads_in_part(i.op_name) for i in ours)
    if partly:
        found.append(
            f"{partly} kernels of our own read of every row what its text has filled: tokens as"
            " --config.context says, each once."
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
