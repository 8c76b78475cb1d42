"""The connections between the processes of a run, by which they end together.

The system closes a connection when the process at its other end dies, and every other process then
says so and ends, whatever it was waiting for: a collective whose partner is gone may block for half
an hour. A process that is there and does not get on is noticed by what it says once a second: one
that says nothing is frozen, and one that does no work and does not wait for others either
(`pulse`) stands still.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import socket
import threading
import time
from typing import Any

from specjax.core import pulse

SILENCE = 0.5  # of the patience: without a sign of life for so long a process counts as frozen
GOODBYE = 3.0  # seconds that a process which fails gives the others to hear of it
_EVERY = 1.0  # seconds between two signs of life

Line = dict[str, Any]


@dataclasses.dataclass
class _Other:
    """A process at the other end of a line."""

    line: socket.socket
    heard: float  # when it last said something
    buffer: bytearray = dataclasses.field(default_factory=bytearray)
    sign: pulse.Sign | None = None
    at: str = ""  # the line of code that it is at
    done: bool = False


class Lifeline:
    """Open connections to process 0, or of process 0 to all others, and a thread that listens."""

    def __init__(self, lines: dict[int, socket.socket], process: int, patience: float):
        """Begins to listen.

        Args:
          lines: the connections, by the process at the other end.
          process: which one this is.
          patience: seconds without progress that are borne; 0: any number.
        """
        now = time.monotonic()
        self._others = {number: _Other(line, now) for number, line in lines.items()}
        self._process, self._patience, self._watch = process, patience, pulse.Watch()
        self._silence = SILENCE * (patience or float("inf"))  # seconds
        self._over = threading.Lock()  # held by the one who ends the process
        self._gone = threading.Event()  # set when nobody is at the other ends any more
        self._sending = threading.Lock()
        self._stderr = os.dup(2)  # where a terminal still is when Python is stopped
        self._saw = now  # when this thread last looked
        self._woke = 0.0  # when it was frozen, or its host, for the last time
        self._unsure = set[int]()  # of whom nothing was heard since this process was frozen
        for line in lines.values():
            line.settimeout(GOODBYE)
            _keep_alive(line)
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_if_frozen(self, path: object) -> None:
        """Before something is written by a process that was frozen: may it still do so?

        Waits until the others have said something. They may have given it up, and another attempt
        may have begun; it ends here then.
        """
        del path
        while self._unsure or time.monotonic() - self._saw > self._silence / 2:
            time.sleep(_EVERY / 10)

    def close(self) -> None:
        """Says goodbye; from here on the others may end."""
        self._over.acquire()
        self._send({"done": True})
        self._gone.wait(GOODBYE)

    def fail(self, message: str, status: int) -> None:
        """Tells the others and waits, for a moment, until they have ended."""
        if self._over.acquire(blocking=False):
            self._send({"failed": message, "status": status})
            self._gone.wait(GOODBYE)
        else:  # another thread is ending this process
            time.sleep(2 * GOODBYE)

    def _send(self, said: Line) -> None:
        text = json.dumps(said).encode() + b"\n"
        with self._sending:
            for other in self._others.values():
                with contextlib.suppress(OSError):  # it is gone, or frozen
                    other.line.sendall(text)

    def _listen(self) -> None:
        lines = selectors.DefaultSelector()
        for process, other in self._others.items():
            lines.register(other.line, selectors.EVENT_READ, process)
        told = 0.0
        while lines.get_map():
            ready = lines.select(_EVERY / 4)
            now = time.monotonic()
            if now - self._saw > self._silence / 2:  # this process stood still: nothing is known
                self._woke = now
                self._unsure = {p for p, other in self._others.items() if not other.done}
                for other in self._others.values():
                    other.heard = now
            for key, _ in ready:
                if self._hear(key.data, now):
                    lines.unregister(key.fileobj)
            self._saw = now
            if now - told >= _EVERY:
                told = now
                self._look(now)
        self._gone.set()

    def _hear(self, process: int, now: float) -> bool:
        """Reads what a process has said; whether that was its last word."""
        other = self._others[process]
        try:
            data = other.line.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            if not other.done:
                self._end(process, {})
            return True
        other.heard = now
        other.buffer += data
        *lines, other.buffer = other.buffer.split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "sign" in said:
                other.sign, other.at = pulse.Sign(**said["sign"]), said["at"]
                if now - self._woke > 2 * _EVERY:  # not what was said while this one was frozen
                    self._unsure.discard(process)
            elif said.get("done"):
                other.done = True
                return True
            else:
                self._end(process, said)
                return True
        return False

    def _look(self, now: float) -> None:
        """Says how this process gets on, and ends the run if one does not."""
        own = self._watch.look()
        at = pulse.where() if own.idle > _EVERY else ""
        if self._over.locked():
            return
        self._send({"sign": dataclasses.asdict(own), "at": at})
        if not self._patience:
            return
        for process, other in self._others.items():
            if not other.done and now - other.heard > self._silence:
                said = f"gave no sign of life for {self._silence:.0f} seconds: it is frozen, or its"
                self._end(process, {"failed": f"{said} host or the network is"})
        if self._process == 0:  # it alone knows all
            signs = {0: (own, at)}
            signs |= {p: (o.sign, o.at) for p, o in self._others.items() if o.sign and not o.done}
            if verdict := stands_still(signs, self._patience):
                self._end(verdict[0], {"failed": verdict[1]})

    def _end(self, process: int, said: Line) -> None:
        """Ends this process, because one could not go on. Returns if it is ending already."""
        if not self._over.acquire(blocking=False):
            return
        by = said.get("process", process)
        reason = said.get("failed", "died without a word, so this run cannot go on; see its output")
        status = said.get("status", 1)
        os.write(self._stderr, f"error: process {by}: {reason}\n".encode(errors="replace"))
        self._send({"failed": reason, "status": status, "process": by})
        self.outlive()
        os._exit(status)

    def outlive(self) -> None:
        """Process 0, whose end is that of the coordination service, waits a moment for the others.

        They close their connections when they end.
        """
        if self._process:
            return
        deadline = time.monotonic() + GOODBYE
        for other in self._others.values():
            with contextlib.suppress(OSError):
                while (left := deadline - time.monotonic()) > 0:
                    other.line.settimeout(left)
                    if not other.line.recv(1 << 16):
                        break


def stands_still(
    signs: dict[int, tuple[pulse.Sign, str]], patience: float
) -> tuple[int, str] | None:
    """The process that keeps all others waiting, if there is one, and what is to be said of it.

    Args:
      signs: of each process how it gets on, and the line of code that it is at.
      patience: seconds without progress that are borne.
    """
    there = "; started again, the run goes on (--patience, if one step takes so long)"
    for process, (sign, at) in sorted(signs.items()):
        if sign.since > pulse.LONGEST and sign.idle <= patience:
            told = f"has been busy for {pulse.LONGEST / 60:.0f} minutes and nothing came of it"
            return process, f"{told}: {sign.doing}, {at}{there}"
    still = {p: s for p, s in signs.items() if s[0].idle > patience}
    alone = {p: s for p, s in still.items() if not s[0].waits}
    told = f"made no progress for {patience:.0f} seconds"
    if alone:
        process = max(sorted(alone), key=lambda p: alone[p][0].idle)
        sign, at = alone[process]
        return process, f"{told}: {sign.doing}, {at}{there}"
    if len(still) == len(signs):
        process = min(still)
        sign, at = still[process]
        return process, f"{told}, nor did any other: {sign.doing}, {at}{there}"
    return None


def _keep_alive(line: socket.socket) -> None:
    """Lets the system notice within half a minute that a whole host is gone."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
