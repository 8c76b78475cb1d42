"""Prompts that are fed beside a batch: which of them together, and in which passes."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator

from specjax.decode import DecodeState
from specjax.session.layout import Layout
from specjax.session.slots import Passes

Plan = tuple[tuple[int, int], ...]  # (start, width) of each pass


@dataclasses.dataclass
class Lane:
    """Prompts that are fed in the same passes, and then wait for rows."""

    indices: list[int]  # of the requests; those that have moved in are taken off the front
    layout: Layout
    state: DecodeState
    passes: deque[tuple[int, int]]  # (start, width) of those to come
    begin: float
    moved: int = 0  # rows of it that have moved in

    @property
    def rows(self) -> int:
        """Of its state; those without a request are done."""
        return len(self.layout.texts)


@dataclasses.dataclass(frozen=True)
class Shape:
    """How prompts share passes.

    A pass feeds at most ``chunk`` tokens (if one prompt allows it), of one long prompt or several
    short ones: where weights are read from memory, that many cost hardly more than one. How many
    rows a prompt is fed beside depends on its own length alone, so that what feeds it is the same
    program whatever else waits.
    """

    passes: Passes
    chunk: int  # tokens of a pass
    most: int  # prompts of a lane
    multiple: int  # of rows

    def plan(self, length: int) -> Plan:
        """The passes that feed a prompt of ``length`` tokens, all but the last one."""
        return tuple(self.passes.plan(length - 1))

    def rows(self, plan: Plan) -> int:
        """How many prompts of one plan are fed together."""
        width = max((width for _, width in plan), default=self.passes.widths[0])
        rows = max(min(self.most, self.chunk // width), 1)
        return rows + -rows % self.multiple


class Queue:
    """Requests that wait, in their order; some of one plan may be taken before others."""

    def __init__(self, num: int, plan: Callable[[int], Plan], shape: Shape):
        self._num, self._plan, self._shape = num, plan, shape
        self._next = 0  # the first that was never looked at
        self._passed: list[int] = []  # before it, and still waiting

    def __bool__(self) -> bool:
        return bool(self._passed) or self._next < self._num

    def first(self) -> int | None:
        """The first that waits."""
        if self._passed:
            return self._passed[0]
        return self._next if self._next < self._num else None

    def take(self, end: int) -> list[int]:
        """Takes the first one out, and others of its plan from few behind it, all below ``end``."""
        first = self.first()
        assert first is not None and first < end
        plan = self._plan(first)
        rows, taken, passed = self._shape.rows(plan), list[int](), list[int]()
        for index in self._near(end, 4 * rows):
            mine = len(taken) < rows and self._plan(index) == plan
            (taken if mine else passed).append(index)
        self._passed = passed
        return taken

    def _near(self, end: int, most: int) -> Iterator[int]:
        """All that were passed over, then up to ``most`` new ones; those count as looked at."""
        yield from self._passed
        stop = min(self._next + max(most - len(self._passed), 0), end, self._num)
        new, self._next = range(self._next, stop), max(stop, self._next)
        yield from new
