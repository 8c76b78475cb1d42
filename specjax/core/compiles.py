"""Notices the programs that JAX compiles: what they cost is told apart from what they then do."""

from __future__ import annotations

import functools
import math
import threading
import time

import jax

# Reported for every program that is built or read from the compilation cache.
_EVENT = "/jax/core/compile/backend_compile_duration"


class _Counter:
    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0
        self.here = threading.local()  # ``last``: when this thread compiled something

    def __call__(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _EVENT:
            self.count += 1
            self.seconds += duration_secs
            self.here.last = time.perf_counter()


@functools.cache
def _counter() -> _Counter:
    # One for the process: JAX keeps its listeners for ever.
    counter = _Counter()
    jax.monitoring.register_event_duration_secs_listener(counter)
    return counter


class Compiles:
    """How many programs were compiled since this was made, and how long they took."""

    def __init__(self) -> None:
        counter = _counter()
        self._count, self._seconds = counter.count, counter.seconds

    @property
    def count(self) -> int:
        return _counter().count - self._count

    @property
    def seconds(self) -> float:
        return _counter().seconds - self._seconds


class Stopwatch:
    """A clock that does not count compiling.

    Tracing and lowering a program, and what surrounds both, cost as much as compiling it: so what
    is left out is all the time from the call of a program until it is compiled.
    """

    def __init__(self) -> None:
        _counter()
        self._began, self.compiling = time.perf_counter(), 0.0  # the latter in seconds

    @property
    def seconds(self) -> float:
        """Since this was made, without what was left out."""
        return time.perf_counter() - self._began - self.compiling

    def leave_out(self, seconds: float) -> None:
        """Takes back so many."""
        self.compiling += seconds

    def leave_out_compiling(self, since: float) -> None:
        """Leaves out the time from ``since``, on this clock, until a program was last compiled."""
        last = getattr(_counter().here, "last", -math.inf)
        self.leave_out(max(last - self._began - self.compiling - since, 0.0))
