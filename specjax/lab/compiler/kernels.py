"""What one run of a compiled computation launches: kernels by phase and by layer, and copies."""

from __future__ import annotations

import collections
import dataclasses
import re

from specjax.lab.compiler.hlo import Computation, Instruction, Module
from specjax.lab.compiler.origins import Origins
from specjax.lab.compiler.traffic import works
from specjax.lab.records.compiled import Kernels

_PREFETCHES = ("copy-start", "slice-start")  # nothing waits for them
_LAYER = re.compile(r"net\.params\['layers'\]\[(\d+)\]")


def count(module: Module, name: str, origins: Origins, scopes: tuple[str, ...]) -> Kernels:
    """Counts instructions that do something of their own: fusions, calls, copies, communication.

    On a GPU each is a kernel, or a call to a library. Not a prefetch into faster memory. Those that
    the compiler has split off others, and given no name, belong to the phase of the one before.
    """
    by_scope: dict[str, int] = collections.Counter()
    begins: dict[int, int] = {}  # layer of the target -> kernels before the first that reads it
    total = inner = 0
    scope = "other"
    for home, instruction, times in module.walk(name):
        if not launches(instruction):
            continue
        scope = scope_of(module, instruction, scopes) or scope
        layer = _layer(home, instruction, origins)
        if layer is not None and times == 1:
            begins.setdefault(layer, total)
        by_scope[scope] += times
        total += times
        inner += times if home.name != name else 0
    first, last = min(begins, default=0), max(begins, default=0)
    a_layer = (begins[last] - begins[first]) / (last - first) if last > first else None
    return Kernels(total, dict(by_scope), inner, a_layer)


def launches(instruction: Instruction) -> bool:
    """Whether something of its own runs, and is waited for."""
    return works(instruction) and instruction.opcode not in _PREFETCHES


def scope_of(module: Module, instruction: Instruction, scopes: tuple[str, ...]) -> str | None:
    """The phase of the cycle it was traced in; None: it does not say."""
    names = [instruction.op_name]
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called("calls")]
        names += [i.op_name for i in inner.instructions.values() if i.op_name]
    found = (re.search(rf"specjax/({'|'.join(scopes)})\b", n) for n in names)
    return next((match[1] for match in found if match), None)


def _layer(home: Computation, user: Instruction, origins: Origins) -> int | None:
    """The layer of the target whose weights it reads."""
    for operand in user.operands:
        if operand in home.instructions:
            match = _LAYER.match(origins.of(home, home.instructions[operand]).argument)
            if match:
                return int(match[1])
    return None


@dataclasses.dataclass(frozen=True)
class Copy:
    """An argument of the program that is copied, whole."""

    argument: str
    times: int
    num_bytes: int  # that are written each time
    is_prefetch: bool  # from main memory into a chip's faster one: how a TPU reads
    is_join: bool  # into one buffer with something else


def copies(module: Module, name: str, origins: Origins) -> list[Copy]:
    """Arguments, or what they were updated to, that one run of a computation copies.

    Also in another order or type, beside something else, and within a fusion: XLA's GPU compiler
    puts a cache and new keys into one buffer to multiply both at once.
    """
    found = []
    for home, instruction, times in module.walk(name):
        if not works(instruction):
            continue
        operands = [home.instructions[o] for o in instruction.operands if o in home.instructions]
        for index, array in enumerate(instruction.arrays):
            again = index and instruction.opcode == "copy-start"  # its operand, and a context
            if again or not origins.moves(home, instruction, index):
                continue
            origin = origins.of(home, instruction, index)
            near = all(a.in_memory for o in operands for a in o.arrays) and not array.in_memory
            same = (o for o in operands if origins.of(home, o).argument == origin.argument)
            whole = max((a.size for o in same for a in o.arrays), default=array.size)
            found.append(Copy(origin.argument, times, array.nbytes, near, array.size > whole))
    return found
