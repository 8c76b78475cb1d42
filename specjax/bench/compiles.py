"""Counts the programs that JAX compiles: behind the warm-up of a benchmark there must be none."""

from __future__ import annotations

import functools

import jax

# Reported for every program that is built or read from the compilation cache.
_EVENT = "/jax/core/compile/backend_compile_duration"


class _Counter:
    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0

    def __call__(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _EVENT:
            self.count += 1
            self.seconds += duration_secs


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
