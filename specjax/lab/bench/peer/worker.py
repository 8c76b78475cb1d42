"""A process of its own for each framework that is measured, asked in turn.

Two frameworks in one process have two thread pools and two allocators on the same cores. In
processes of their own, the one that is not asked waits for its pipe and costs nothing.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Callable
from typing import Any

_served: Any = None  # in the process: the object


class Inline:
    """An object that is asked by name, in this process."""

    def __init__(self, factory: Callable[..., Any], *args: Any):
        self._object = factory(*args)

    def call(self, method: str, *args: Any) -> Any:
        """The result of a method."""
        return getattr(self._object, method)(*args)

    def close(self) -> None:
        """Ends what it runs in."""


class Worker:
    """The same in another process: arguments, results and exceptions are pickled."""

    def __init__(self, factory: Callable[..., Any], *args: Any):
        """Starts the process, and makes ``factory(*args)`` in it; raises what that raises."""
        context = multiprocessing.get_context("spawn")
        self._pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=context)
        self._pool.submit(_make, factory, args).result()

    def call(self, method: str, *args: Any) -> Any:
        """The result of a method."""
        return self._pool.submit(_call, method, args).result()

    def close(self) -> None:
        """Ends the process."""
        self._pool.shutdown()


def _make(factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
    global _served
    _served = factory(*args)


def _call(method: str, args: tuple[Any, ...]) -> Any:
    return getattr(_served, method)(*args)
