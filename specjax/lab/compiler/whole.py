"""What one run of a whole compiled program multiplies, moves and launches."""

from __future__ import annotations

import dataclasses
import math
import re

from specjax.lab.compiler import hlo
from specjax.lab.compiler.kernels import launches
from specjax.lab.compiler.traffic import memory_bytes

_OVER = re.compile(r'lhs_contracting_dim(?:ension)?s[^0-9]*([0-9",\s]*)')


@dataclasses.dataclass(frozen=True)
class Whole:
    """Counted in the optimised program; loops count as often as they run."""

    products: int  # operations of matrix products, those inside kernels of our own left out
    moved_bytes: int  # read and written, see `traffic`
    kernels: int  # see `kernels`


def count(text: str) -> Whole:
    """Of a program's optimised HLO."""
    module = hlo.parse(text)
    moved = memory_bytes(module, module.entry)
    walked = [(home, one, times) for home, one, times in module.walk(module.entry)]
    return Whole(
        products=sum(times * _products(module, home, one) for home, one, times in walked),
        moved_bytes=moved.far + moved.near,
        kernels=sum(times for _, one, times in walked if launches(one)),
    )


def _products(module: hlo.Module, home: hlo.Computation, instruction: hlo.Instruction) -> int:
    """Operations of an instruction's products, or of those in a fusion."""
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called("calls")]
        return sum(_products(module, inner, one) for one in inner.instructions.values())
    said = _OVER.search(instruction.attributes)
    if said is None or instruction.opcode not in ("dot", "custom-call"):
        return 0
    left = home.instructions[instruction.operands[0]].arrays[0].dims
    over = math.prod(left[int(axis)] for axis in re.findall(r"\d+", said[1]))
    return 2 * over * instruction.arrays[0].size
