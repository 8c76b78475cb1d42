"""What one run of a whole compiled program multiplies, moves and launches."""

from __future__ import annotations

import dataclasses

from specjax.lab.compiler import hlo
from specjax.lab.compiler.kernels import launches
from specjax.lab.compiler.traffic import flops, memory_bytes


@dataclasses.dataclass(frozen=True)
class Whole:
    """Counted in the optimised program; loops count as often as they run."""

    products: int  # operations of matrix products, see `traffic`
    moved_bytes: int  # read and written, see `traffic`
    kernels: int  # see `kernels`


def count(text: str) -> Whole:
    """Of a program's optimised HLO."""
    module = hlo.parse(text)
    moved = memory_bytes(module, module.entry)
    return Whole(
        products=flops(module, module.entry),
        moved_bytes=moved.far + moved.near,
        kernels=sum(times for _, one, times in module.walk(module.entry) if launches(one)),
    )
