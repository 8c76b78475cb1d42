"""Where the time of a cycle goes: a trace of the device, by the named scopes of `decode.cycle`."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path

import jax

from specjax.lab.compiler import hlo, kernels
from specjax.lab.compiler.cycle import SCOPES
from specjax.lab.costs.programs import CycleProgram

_HOLD_OTHERS = ("while", "conditional", "call")  # their time is that of what is in them


def by_scope(program: CycleProgram, cycles: int, directory: Path) -> dict[str, float]:
    """Seconds of a cycle that operations of each scope took on the device, one after the other.

    ``directory`` gets the trace. What no scope holds, such as the condition of the loop, is
    "other"; operations that run side by side, as on CPUs, add up to more than the time of a cycle.

    Raises:
      ValueError: if the trace holds none of the program's operations.
    """
    program.run(cycles)
    with jax.profiler.trace(str(directory)):
        program.run(cycles)
    scopes = scopes_of(program.compiled.as_text())
    spent = spent_in(directory)
    found: dict[str, float] = dict.fromkeys((*SCOPES, "other"), 0.0)
    for name, seconds in spent.items():
        if name in scopes:
            found[scopes[name]] += seconds / cycles
    if not any(found.values()):
        raise ValueError("the trace names no operation of the program")
    return found


def scopes_of(text: str) -> dict[str, str]:
    """The scope of each instruction that runs by itself, by its name in a program's ``text``."""
    module, found = hlo.parse(text), dict[str, str]()
    for home in module.computations.values():
        if home.name in module.fused:
            continue
        scope = "other"
        for instruction in home.instructions.values():
            if kernels.launches(instruction) and instruction.opcode not in _HOLD_OTHERS:
                scope = kernels.scope_of(module, instruction, SCOPES) or scope
                found[instruction.name] = scope
    return found


def spent_in(directory: Path) -> Mapping[str, float]:
    """Seconds of each operation of a trace, by its name in the compiled program."""
    spent = collections.defaultdict[str, float](float)
    for path in directory.glob("**/*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    name = next((v for k, v in event.stats if k == "hlo_op"), None)
                    if name is not None:
                        spent[str(name)] += event.duration_ns * 1e-9
    return spent
