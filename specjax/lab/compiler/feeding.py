"""The account of a prefill pass: what the compiled program that feeds a prompt costs one device."""

from __future__ import annotations

from typing import Any

import jax

from specjax.lab.compiler import branches, hlo, kernels, traffic
from specjax.lab.compiler.abstract import Abstract
from specjax.lab.compiler.cycle import Copied, argument_kinds, sort_arrays
from specjax.lab.compiler.origins import Origins
from specjax.lab.compiler.topology import Topology
from specjax.lab.costs import account
from specjax.lab.records.compiled import PrefillCost, Setup


def feeding(
    session: Abstract, setup: Setup, topology: Topology, width: int, text: str
) -> PrefillCost:
    """The account of a pass of ``width`` tokens a row behind --config.context others.

    ``text`` is the optimised program.
    """
    module = hlo.parse(text, setup.trips, setup.context)
    origins, kind_of, name = Origins(module), argument_kinds(session), module.entry
    kind = sort_arrays(origins, kind_of, topology)
    module, _ = branches.settle(module, name, kind, origins)
    moved, flops = traffic.memory_bytes(module, name, kind), traffic.flops(module, name)
    rows, slots = session.tokens.shape
    least = account.feeding(
        session.target,
        session.drafter,
        needed=_needed(session, module),
        rows=rows,
        slots=slots,
        context=setup.context,
        width=width,
    )
    copied = Copied.of(kernels.copies(module, name, origins), kind_of)
    return PrefillCost(
        tokens=rows * width,
        bytes=moved.far,
        near_bytes=moved.near,
        floor=least,
        bytes_over_floor=moved.far / least.bytes,
        flops=flops,
        flops_over_floor=flops / least.flops,
        kernels=kernels.count(module, name, origins, ()).total,
        collectives=traffic.collectives(module, name),
        cache_copies=sum(c.times for c in copied.caches),
    )


def _needed(session: Abstract, module: hlo.Module) -> frozenset[str]:
    """The weights that the program takes, by the names of `account.weights`.

    The drafter's stand behind "drafter.". JAX leaves out what no result depends on: the head.
    """
    entry = module.computations[module.entry]
    taken = {
        i.op_name.replace("\\'", "'")
        for i in entry.instructions.values()
        if i.opcode == "parameter"
    }
    found = set[str]()
    for prefix, net in (("net", session.target.net), ("drafter.net", _net(session))):
        for path, _ in jax.tree_util.tree_flatten_with_path(net)[0]:
            if prefix + jax.tree_util.keystr(path) in taken:
                found.add(prefix.removesuffix("net") + _dotted(path))
    return frozenset(found)


def _net(session: Abstract) -> Any:
    return getattr(session.drafter, "net", None)


def _dotted(path: Any) -> str:
    """.params['layers'][0]['norm']['weight'].value -> layers.0.norm.weight."""
    keys = [str(k) for k in map(_key, path)]
    return ".".join(keys[1 : keys.index("value")])


def _key(part: Any) -> Any:
    return next(getattr(part, n) for n in ("key", "idx", "name") if hasattr(part, n))
