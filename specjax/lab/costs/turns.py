"""Who runs when, where things are timed side by side.

What drifts on a machine (clock, neighbours) meets neighbours in time alike. So a ratio is the
median of the ratios within a turn, not the ratio of two medians, and nobody is always the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def order(turn: int, count: int) -> list[int]:
    """In which order ``count`` things run in a turn: rotated by one each time, then backwards.

    Each comes first as often as any other; of two the orders are AB BA BA AB.
    """
    start = turn % count
    found = [*range(start, count), *range(start)]
    return found if turn // count % 2 == 0 else found[::-1]


def take(runs: Sequence[Callable[[], T]], turn: int) -> list[T]:
    """Runs each once, in the turn's order. Returns what they gave, in the order of ``runs``."""
    given = {i: runs[i]() for i in order(turn, len(runs))}
    return [given[i] for i in range(len(runs))]
