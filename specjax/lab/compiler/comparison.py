"""Two reports of one setup side by side: what a change of the code cost or saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_SAME = ("topology", "mesh", "num_draft", "rule")
_FREE = {"num_draft", "programs"}  # of the setup: a plain cycle has no guesses


@dataclasses.dataclass(frozen=True)
class Figure:
    """One of a cycle on one device. Less is better in all of them."""

    name: str
    before: float
    after: float

    @property
    def worse(self) -> bool:
        return self.after > self.before


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Figure]:
    """The figures of both, in the report's order; what takes time to compile is none of them.

    Raises:
      ValueError: in one line, if they are of different programs, or one is no report of today's.
    """
    for field in _SAME:
        _same(field, before.get(field), after.get(field))
    for field in before.get("setup", {}).keys() - _FREE:
        _same(f"setup.{field}", before["setup"][field], after.get("setup", {}).get(field))
    try:
        first, second = dict(_figures(before)), dict(_figures(after))
    except (KeyError, TypeError) as error:
        raise ValueError(f"A report that is compared lacks {error}: make it anew.") from None
    names = dict.fromkeys([*first, *second])
    return [Figure(name, first.get(name, 0), second.get(name, 0)) for name in names]


def _same(field: str, before: Any, after: Any) -> None:
    if before != after:
        raise ValueError(f"Reports of different programs: {field} is {before!r} and {after!r}.")


def _figures(report: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    cycle, run = report["cycle"], report["programs"]["run"]
    for name, of in _OF_CYCLE.items():
        yield name, of(cycle)
    for kind, found in cycle["collectives"].items():
        yield kind, found["count"]
        yield f"{kind}, bytes", found["bytes"]
    if run["memory"]:
        yield "temporaries, bytes", run["memory"]["temporaries"]
        yield "peak, bytes", run["peak_bytes"]


_OF_CYCLE: dict[str, Callable[[Any], float]] = {
    "bytes": lambda cycle: cycle["bytes"],
    "bytes / floor": lambda cycle: cycle["bytes_over_floor"],
    "near bytes": lambda cycle: cycle["near_bytes"],
    "flops": lambda cycle: cycle["flops"],
    "kernels": lambda cycle: cycle["kernels"]["total"],
    "kernels a layer": lambda cycle: cycle["kernels"]["a_layer"] or 0,
    "cache copies": lambda cycle: cycle["cache_copies"],
    "cache joins": lambda cycle: cycle["cache_joins"],
    "weight copies": lambda cycle: cycle["weight_copies"],
    "instructions": lambda cycle: cycle["num_instructions"],
}
