"""The report on a set of compiled programs, as JSON values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from specjax.lab.compiler.abstract import Abstract, Setup, abstract, states
from specjax.lab.compiler.account import cycle
from specjax.lab.compiler.floor import local_bytes, weights
from specjax.lab.compiler.programs import Compiled, compile_all, names
from specjax.lab.compiler.topology import GIB, Topology


def plan(setup: Setup, topology: Topology, mesh: Mesh | None) -> tuple[Abstract, dict[str, int]]:
    """What is to be compiled, and the bytes of it that one device must hold.

    Raises:
      ValueError: if something does not fit together, or does not fit into a device's memory.
    """
    session = abstract(setup, mesh, topology.written_for)
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
        "kv_repeat": getattr(session.target.config, "kv_repeat", 1),
        "held_bytes": held,
        "programs_of_a_generation": names(session),
        "programs": {},
    }
    for compiled in _in_one_line(compile_all(session, setup.programs)):
        report["programs"][compiled.name] = {
            "seconds": compiled.seconds,
            "memory": compiled.memory,
            "peak_bytes": compiled.peak_bytes,
        }
        text = compiled.executable.as_text()
        hlo_text(compiled.name, text)
        if compiled.name == "run":
            report["cycle"] = cycle(session, setup, topology, compiled, text)
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
