"""The branches of a compiled program's conditionals: one of each runs, and the dearest counts."""

from __future__ import annotations

import collections
import dataclasses

from specjax.lab.compiler import traffic
from specjax.lab.compiler.hlo import Instruction, Module
from specjax.lab.compiler.kernels import copies, launches
from specjax.lab.compiler.origins import Origins
from specjax.lab.compiler.traffic import Kind


@dataclasses.dataclass(frozen=True)
class Branch:
    """What one run of it moves and computes; conditionals inside count with their dearest."""

    bytes: int  # of main memory, without temporaries that stay in a nearer one
    flops: int
    kernels: int
    copied: dict[str, int]  # argument -> how often it is copied whole


@dataclasses.dataclass(frozen=True)
class Choice:
    """A conditional that a computation runs."""

    op_name: str  # where it comes from in the traced program
    times: int  # that it runs
    branches: tuple[Branch, ...]
    counted: int  # the branch that moves most; of equal ones that which computes most


def settle(module: Module, name: str, kind: Kind, origins: Origins) -> tuple[Module, list[Choice]]:
    """The module with the dearest branch of every conditional taken, and what the others cost.

    Args:
      module: the program.
      name: of the computation that is counted, conditionals in its loops and branches included.
      kind: of arrays, as `traffic.memory_bytes` takes it; "near" is no part of a branch's bytes.
      origins: of the module.
    """
    met: dict[str, Instruction] = {}
    runs: dict[str, int] = collections.Counter()
    for _, instruction, times in module.walk(name):
        if instruction.opcode == "conditional":
            met[instruction.name] = instruction
            runs[instruction.name] += times
    choices = []
    for conditional in reversed(met.values()):  # those inside others first
        branches = tuple(_cost(module, called, kind, origins) for called in conditional.calls)
        dearest = max(range(len(branches)), key=lambda i: (branches[i].bytes, branches[i].flops))
        taken = {**module.taken, conditional.name: dearest}
        module = dataclasses.replace(module, taken=taken)
        choices.append(Choice(conditional.op_name, runs[conditional.name], branches, dearest))
    return module, choices[::-1]


def _cost(module: Module, name: str, kind: Kind, origins: Origins) -> Branch:
    moved = traffic.memory_bytes(module, name, kind)
    copied: dict[str, int] = collections.Counter()
    for copy in copies(module, name, origins):
        copied[copy.argument] += 0 if copy.is_prefetch else copy.times
    return Branch(
        bytes=moved.far,
        flops=traffic.flops(module, name),
        kernels=sum(times for _, i, times in module.walk(name) if launches(i)),
        copied=dict(copied),
    )
