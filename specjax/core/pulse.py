"""Whether this process gets on: what it is doing, and when it last did some of it.

The thread of the lifelines (`lifeline`) looks; `hosts.fetch`, the waits of `hosts` and the loops of
decoding and training say so. Where nobody says anything, work shows itself: it uses the processor,
or reads and writes. A process that waits does neither.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator

PATIENCE = 40.0  # seconds without progress after which a run of several processes is ended
LONGEST = 1800.0  # seconds of one piece of work, such as compiling or downloading, busy or not
_BUSY = 0.02  # share of a processor from where a process is at work, and does not wait
_MOVED = 1 << 20  # bytes read or written, likewise
_LIBRARIES = (*map(sysconfig.get_path, ("stdlib", "purelib")), os.path.dirname(__file__))


@dataclasses.dataclass(frozen=True)
class Sign:
    """What a process says of itself, once a second."""

    idle: float  # seconds since it last got on
    since: float  # seconds since it last said so itself: all that it used may be an endless loop
    doing: str
    waits: bool  # for other processes: then its standing still is not its own fault


@dataclasses.dataclass
class _Now:
    doing: str = "at work"
    waits: bool = False
    on_device: bool = False  # a device that computes by itself while this process may spin
    limit: float | None = None  # seconds; None: the patience of the run
    last: float = dataclasses.field(default_factory=time.monotonic)


_now = _Now()


def beat() -> None:
    """Says that something was done."""
    _now.last = time.monotonic()


@contextlib.contextmanager
def doing(
    what: str, *, waits: bool = False, on_device: bool = False, limit: float | None = None
) -> Iterator[None]:
    """Around a piece of work of the main thread.

    Args:
      what: for the message where it does not end, such as "taking step 7".
      waits: whether it ends only when other processes have done something.
      on_device: whether it is an accelerator that works; this process is busy only with waiting.
      limit: seconds that it may take without a sign; None: the patience of the run.
    """
    global _now
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, _now = _now, _Now(what, waits, on_device, limit)
    try:
        yield
    finally:
        before.last = time.monotonic()
        _now = before


class Watch:
    """Looks, once in a while, whether the process gets on. Used by one thread."""

    def __init__(self) -> None:
        self._used, self._seen = self._all_used(), time.monotonic()

    def look(self) -> Sign:
        """How things stand now."""
        now, clock = _now, time.monotonic()
        used = self._all_used()
        worked = used[0] - self._used[0] > max(_BUSY * (clock - self._seen), 0.1)
        worked = worked or used[1] - self._used[1] > _MOVED
        if worked and (not now.on_device or compiling()):
            self._used, self._seen = used, clock
        elif now.last > self._seen:
            self._used, self._seen = used, now.last
        idle = clock - self._seen
        if now.limit is not None:
            idle = 0.0 if clock - now.last < now.limit else clock - now.last
        return Sign(idle, clock - now.last, now.doing, now.waits)

    @staticmethod
    def _all_used() -> tuple[float, int]:
        """Seconds of the processor, and bytes read and written, until now."""
        moved = 0
        with contextlib.suppress(OSError, ValueError, IndexError):  # Linux alone has it
            with open("/proc/self/io", "rb") as file:
                lines = file.read().split(b"\n")
            moved = sum(int(x.split()[1]) for x in lines if x[:5] in (b"rchar", b"wchar", b"read_"))
        return time.process_time(), moved


def compiling() -> bool:
    """Whether the main thread compiles a program: no device works then."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.endswith(os.path.join("jax", "_src", "compiler.py")):
            return True
        frame = frame.f_back
    return False


def where() -> str:
    """The file and line that the main thread is at, without libraries and without these waits."""
    frame = innermost = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and os.path.dirname(frame.f_code.co_filename).startswith(_LIBRARIES):
        frame = frame.f_back
    frame = frame or innermost
    return "" if frame is None else f"at {frame.f_code.co_filename}, line {frame.f_lineno}"
