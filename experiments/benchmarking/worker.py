"""A process of its own for each framework that is measured, asked in turn.

Two frameworks in one process have two thread pools and two allocators on the same cores. In
processes of their own, the one that is not asked waits for its pipe and costs nothing.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class Worker:
    """An object that lives in another process; `call` runs its methods there."""

    def __init__(self, factory: Callable[..., Any], *args: Any):
        """Starts the process, and makes ``factory(*args)`` in it.

        Raises:
          ValueError: as raised by the factory, on bad input.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, factory, args), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The result of a method; arguments and result are pickled."""
        self._pipe.send((method, args, kwargs))
        return self._answer()

    def close(self) -> None:
        self._pipe.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.terminate()

    def _answer(self) -> Any:
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            raise RuntimeError("a worker process died; see above") from None
        if kind == "bad input":
            raise ValueError(value)
        if kind == "error":
            raise RuntimeError(f"in a worker process:\n{value}")
        return value


class Inline:
    """The same interface without a process, to measure what sharing one does."""

    def __init__(self, factory: Callable[..., Any], *args: Any):
        self._object = factory(*args)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._object, method)(*args, **kwargs)

    def close(self) -> None:
        pass


def _serve(pipe: Connection, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """The life of the process: makes the object, then answers until the pipe closes."""
    try:
        served = factory(*args)
        pipe.send(("ready", None))
        while True:
            method, args, kwargs = pipe.recv()
            pipe.send(("result", getattr(served, method)(*args, **kwargs)))
    except (EOFError, KeyboardInterrupt):
        return
    except ValueError as error:
        pipe.send(("bad input", str(error)))
    except Exception:
        pipe.send(("error", traceback.format_exc()))
