"""Two reports of one setup side by side: what a change of the code cost or saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from specjax.lab.records.compiled import CompileReport

_SAME = ("topology", "mesh", "num_draft", "rule")
# Of the setup: a plain cycle has no guesses, and whose kernels run is what may be compared.
_FREE = {"num_draft", "programs", "kernels", "split_k"}


@dataclasses.dataclass(frozen=True)
class Figure:
    """One of a cycle on one device. Less is better in all of them."""

    name: str
    before: float
    after: float

    @property
    def worse(self) -> bool:
        return self.after > self.before


def compare(before: CompileReport, after: CompileReport) -> list[Figure]:
    """The figures of both, in the report's order; what takes time to compile is none of them.

    Raises:
      ValueError: in one line, if they are of different programs, or one is no report of today's.
    """
    for name in _SAME:
        _same(name, getattr(before, name), getattr(after, name))
    for name in vars(before.setup).keys() - _FREE:
        _same(f"setup.{name}", getattr(before.setup, name), getattr(after.setup, name))
    first, second = dict(_figures(before)), dict(_figures(after))
    names = dict.fromkeys([*first, *second])
    return [Figure(name, first.get(name, 0), second.get(name, 0)) for name in names]


def _same(field: str, before: Any, after: Any) -> None:
    if before != after:
        raise ValueError(f"Reports of different programs: {field} is {before!r} and {after!r}.")


def _figures(report: CompileReport) -> Iterator[tuple[str, float]]:
    cycle, run = report.cycle, report.run
    if cycle.kernels is None:
        raise ValueError("A report that is compared lacks 'kernels': make it anew.")
    yield "bytes", cycle.bytes
    yield "bytes / floor", cycle.bytes_over_floor
    yield "near bytes", cycle.near_bytes
    yield "flops", cycle.flops
    yield "kernels", cycle.kernels.total
    yield "kernels a layer", cycle.kernels.a_layer or 0
    yield "cache copies", cycle.cache_copies
    yield "cache joins", cycle.cache_joins
    yield "weight copies", cycle.weight_copies
    yield "instructions", cycle.num_instructions
    for kind, found in cycle.collectives.items():
        yield kind, found.count
        yield f"{kind}, bytes", found.bytes
    for name, fed in report.prefills.items():
        yield f"{name}, bytes", fed.bytes
        yield f"{name}, flops", fed.flops
        yield f"{name}, kernels", fed.kernels
    if run.memory is not None:
        yield "temporaries, bytes", run.memory.temporaries
        yield "peak, bytes", run.peak_bytes
