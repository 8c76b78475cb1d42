"""Ctrl-C between two device calls instead of within one."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupt:
    """Within it the first Ctrl-C is only noted, and the second one raises KeyboardInterrupt.

    A program on the device is not left running under a Python that goes on.
    """

    def __init__(self) -> None:
        self.noted = False

    def __enter__(self) -> Interrupt:
        self._here = threading.current_thread() is threading.main_thread()  # where signals go
        if self._here:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._here:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.noted:
            raise KeyboardInterrupt
        self.noted = True
