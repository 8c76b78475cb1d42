"""The report on a set of compiled programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from specjax.core import choices
from specjax.lab.compiler.abstract import Abstract, abstract
from specjax.lab.compiler.cycle import cycle
from specjax.lab.compiler.feeding import feeding
from specjax.lab.compiler.programs import Compiled, compile_all, names
from specjax.lab.compiler.topology import GIB, Topology
from specjax.lab.costs import account
from specjax.lab.records.compiled import CompileReport, PrefillCost, ProgramCost, Setup


def plan(setup: Setup, topology: Topology, mesh: Mesh | None) -> tuple[Abstract, dict[str, int]]:
    """What is to be compiled, and the bytes of it that one device must hold.

    Raises:
      ValueError: if something does not fit together, or does not fit into a device's memory.
    """
    said: dict[str, Any] = {"kernels": setup.kernels, "split_k": setup.split_k}
    if setup.kernels == "tuned":
        said["choices"] = choices.of(topology.kind)
    platform = dataclasses.replace(topology.written_for, **said)
    session = abstract(setup, mesh, platform)
    held = account.held_bytes(session.target, session.drafter, rows=setup.rows, slots=setup.slots)
    total, room = sum(held.values()), topology.hbm_bytes
    if room is not None and total > room:
        parts = ", ".join(f"{k} {v / GIB:.1f}" for k, v in held.items() if v)
        raise ValueError(
            f"{setup.target} does not fit on {topology.name}: a device needs {total / GIB:.1f} GiB"
            f" ({parts}) and has {room / GIB:.1f}; use more chips along the model axis, fewer rows"
            " or fewer slots."
        )
    return session, held


def make(
    setup: Setup,
    topology: Topology,
    mesh: Mesh | None,
    *,
    done: Callable[[Compiled], None] = lambda compiled: None,
    hlo_text: Callable[[str, str], None] = lambda name, text: None,
) -> CompileReport:
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
    programs: dict[str, ProgramCost] = {}
    prefills: dict[str, PrefillCost] = {}
    for compiled in _in_one_line(compile_all(session, setup.programs)):
        programs[compiled.name] = compiled.cost
        text = compiled.executable.as_text()
        hlo_text(compiled.name, text)
        if compiled.name == "run":
            counted = cycle(session, setup, topology, compiled, text)
        if compiled.name.startswith("prefill "):
            width = int(compiled.name.removeprefix("prefill "))
            prefills[compiled.name] = feeding(session, setup, topology, width, text)
        done(compiled)
    return CompileReport(
        setup=setup,
        topology=topology.name,
        devices=len(topology.devices) if mesh is None else mesh.size,
        chips=topology.num_chips,
        device_kind=topology.kind,
        hbm_bytes=topology.hbm_bytes,
        mesh={} if mesh is None else dict(mesh.shape),
        jax=jax.__version__,
        num_draft=session.drafter.num_draft,
        rule=session.rule.name,
        kv_repeat=getattr(session.target.config, "kv_repeat", 1),
        held_bytes=held,
        programs_of_a_generation=tuple(names(session)),
        programs=programs,
        cycle=counted,
        prefills=prefills,
    )


def _in_one_line(programs: Iterator[Compiled]) -> Iterator[Compiled]:
    """The same programs; that one does not fit after all is bad input."""
    try:
        yield from programs
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(f"The program does not fit: {str(error).splitlines()[0]}") from None
