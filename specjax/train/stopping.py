"""Ctrl-C and SIGTERM during training: the step is finished, the state saved, and the run ends."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """A run ended early because it was asked to; its state is saved. One line."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


class Stopping:
    """Inside, a first Ctrl-C or SIGTERM only sets a flag; a second one ends the process.

    With several processes JAX's own handler of SIGTERM tells all of them, and which step they stop
    at; a handler of one's own would replace it.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def wanted(self, step: int) -> bool:
        """Whether the run is to be saved and ended now. Every process asks at every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signum = signal.SIGTERM
        return self.signum is not None

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM][: 2 if jax.process_count() == 1 else 0]
            self._before = {n: signal.signal(n, self._note) for n in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        del frame
        for number, handler in self._before.items():  # a second one is not waited for
            signal.signal(number, handler)
        self.signum = signum
        print("stopping: this step is finished and saved first", file=sys.stderr, flush=True)
