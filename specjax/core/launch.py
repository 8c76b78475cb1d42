"""Starts the processes of one run together, and ends them together.

Before JAX connects them they meet at the coordinator's port (`_meet`): JAX ends a process in a C++
stack where one does not come, comes twice, or counts otherwise; here that is one line. The
connections of that meeting stay open as lifelines. The system closes them when a process dies, and
every other process then says so and ends, whatever it was waiting for: a collective whose partner
is gone may block for half an hour.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import socket
import sys
import threading
import time
from typing import Any, NoReturn

import jax

from specjax.core import hosts

MEETING = 50.0  # seconds in which all processes have to come
HEARTBEAT = 40  # seconds of silence after which JAX ends a process that lost its network
_GOODBYE = 3.0  # seconds that a process which fails gives the others to hear of it
_HEARSAY = 1.5  # seconds in which a death that has happened is noticed
_SHUTDOWN = 15  # seconds for the end, where all have said that they are done
_HELLO = "specjax"

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of one process among those of a run."""

    coordinator: str  # HOST:PORT, where process 0 listens
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None  # None: all that JAX sees

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


_lifeline: Lifeline | None = None


def join(place: Place, told: Line, *, survives_sigterm: bool = False) -> None:
    """Makes this process one of several. Before anything asks JAX for a device.

    Args:
      place: its own.
      told: what it was told to do, JSON values; all processes have to be told the same.
      survives_sigterm: whether the program asks for preemption itself
        (`multihost_utils.reached_preemption_sync_point`); SIGTERM no longer ends it then.

    Raises:
      ValueError: in one line, if the processes do not come together, or do not fit together.
    """
    global _lifeline
    deadline = time.monotonic() + MEETING
    lines = _receive(place, told, deadline) if place.process_id == 0 else _meet(place, told)
    jax.config.update("jax_enable_preemption_service", survives_sigterm)
    jax.distributed.initialize(
        place.coordinator,
        place.num_processes,
        place.process_id,
        local_device_ids=place.local_device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=int(MEETING),
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=_SHUTDOWN,
    )
    _lifeline = Lifeline(lines)


def leave() -> None:
    """At the end of a run: waits until every process is there. Without several, nothing."""
    if _lifeline is not None:
        hosts.barrier("the end")
        _lifeline.close()


def exit_together(status: int) -> NoReturn:
    """`leave`, and the end of every process without Python's and JAX's own."""
    leave()
    if _lifeline is not None:
        _lifeline.outlive()
    sys.stdout.flush()
    os._exit(status)


def fail(message: str, status: int) -> NoReturn:
    """Ends this process and all others, which print the message; does not wait for anything."""
    sys.stdout.flush()
    if _lifeline is not None:
        _lifeline.fail(message, status)
    os._exit(status)


def let_others_speak() -> None:
    """Before a failure of our own is told: it may come from the death of another process.

    A collective whose partner is gone fails in the same moment as its connection; where that is
    so, this process ends here, with what the lifeline says.
    """
    if _lifeline is not None:
        time.sleep(_HEARSAY)


def joined() -> bool:
    """Whether this process is one of several."""
    return _lifeline is not None


class Lifeline:
    """Open connections to process 0, or of process 0 to all others, and a thread that listens."""

    def __init__(self, lines: dict[int, socket.socket]):
        """``lines`` are the connections, by the process at the other end."""
        self._lines, self._over = lines, threading.Lock()  # held by the one who ends the process
        self._gone = threading.Event()  # set when nobody is at the other ends any more
        self._stderr = os.dup(2)  # where a terminal still is when Python is stopped
        for line in lines.values():
            line.settimeout(_GOODBYE)
            _keep_alive(line)
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Says goodbye; from here on the others may end."""
        self._over.acquire()
        self._send({"done": True})
        self._gone.wait(_GOODBYE)

    def fail(self, message: str, status: int) -> None:
        """Tells the others and waits, for a moment, until they have ended."""
        if self._over.acquire(blocking=False):
            self._send({"failed": message, "status": status})
            self._gone.wait(_GOODBYE)
        else:  # another thread is ending this process
            time.sleep(2 * _GOODBYE)

    def _send(self, said: Line) -> None:
        for line in self._lines.values():
            with contextlib.suppress(OSError):  # it is gone
                line.sendall(json.dumps(said).encode() + b"\n")

    def _listen(self) -> None:
        open_lines = selectors.DefaultSelector()
        for process, line in self._lines.items():
            open_lines.register(line, selectors.EVENT_READ, (process, line, bytearray()))
        while open_lines.get_map():
            for key, _ in open_lines.select():
                process, line, heard = key.data
                try:
                    data = line.recv(1 << 16)
                except OSError:
                    data = b""
                heard += data
                if data and b"\n" not in data:
                    continue
                open_lines.unregister(line)
                said = json.loads(heard) if b"\n" in heard else {}
                if not said.get("done"):
                    self._end(process, said)
        self._gone.set()

    def _end(self, process: int, said: Line) -> None:
        """Ends this process, because another one did. Returns if it is ending already."""
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
        if 0 in self._lines:
            return
        deadline = time.monotonic() + _GOODBYE
        for line in self._lines.values():
            with contextlib.suppress(OSError):
                line.settimeout(max(deadline - time.monotonic(), 0.01))
                while line.recv(1 << 16):
                    pass


def _keep_alive(line: socket.socket) -> None:
    """Lets the system notice within half a minute that a whole host is gone."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _receive(place: Place, told: Line, deadline: float) -> dict[int, socket.socket]:
    """Process 0 of the meeting: the connections to all others, by process."""
    port = place.address[1]
    try:
        two = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if two else socket.AF_INET
        listener = socket.create_server(("", port), family=family, dualstack_ipv6=two, backlog=512)
    except OSError as error:
        raise ValueError(
            f"--coordinator={place.coordinator}: process 0 cannot listen there ({error.strerror}); "
            "take a free port."
        ) from None
    found: dict[int, socket.socket] = {}
    wrong = None
    with listener:
        while len(found) < place.num_processes - 1 and wrong is None:
            listener.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                line = listener.accept()[0]
            except TimeoutError:
                missing = sorted({*range(1, place.num_processes)} - set(found))
                wrong = (
                    f"--num_processes={place.num_processes}: process {_some(missing)} did not come "
                    f"to {place.coordinator} within {MEETING:.0f} seconds; start all of them."
                )
                break
            said = _hear(line)
            if said.get("hello") != _HELLO:  # not one of ours
                line.close()
                continue
            wrong = _misfit(place, told, said, found)
            found[-1 if wrong else said["process"]] = line
    # The port is free again: JAX's own service takes it.
    answer = {"hello": _HELLO} if wrong is None else {"failed": wrong}
    for line in found.values():
        line.sendall(json.dumps(answer).encode() + b"\n")
    if wrong is not None:
        raise ValueError(wrong)
    return found


def _misfit(place: Place, told: Line, said: Line, found: dict[int, socket.socket]) -> str | None:
    """Why a process that has come cannot be one of this run."""
    process, number = said["process"], said["num_processes"]
    if number != place.num_processes:
        return (
            f"process {process} was started with --num_processes={number}, process 0 with "
            f"{place.num_processes}; give all the same."
        )
    if process == 0 or process in found:
        return f"--process_id={process} was given to two processes; number them from 0."
    for name in sorted({*told, *said["told"]}):
        if told.get(name) != said["told"].get(name):
            return (
                f"process {process} was started with another {name} than process 0 "
                f"({_shown(said['told'].get(name))}, not {_shown(told.get(name))}); give all the "
                "same."
            )
    return None


def _meet(place: Place, told: Line) -> dict[int, socket.socket]:
    """Another process of the meeting: the connection to process 0."""
    # Process 0 may give up and say so at the end of its own time.
    deadline = time.monotonic() + MEETING + 5.0
    unreachable = ValueError(
        f"--coordinator={place.coordinator}: no process 0 answers there within {MEETING:.0f} "
        "seconds; start it, or correct the address."
    )
    hello = {"hello": _HELLO, "process": place.process_id, "told": told}
    hello["num_processes"] = place.num_processes
    while True:
        try:
            line = socket.create_connection(place.address, timeout=5.0)
            line.settimeout(max(deadline - time.monotonic(), 0.01))
            line.sendall(json.dumps(hello).encode() + b"\n")
            said = _hear(line, deadline - time.monotonic())
        except OSError:
            said = {}
        if said.get("hello") == _HELLO:
            return {0: line}
        if "failed" in said:
            raise ValueError(said["failed"])
        if time.monotonic() > deadline - 5.0:
            raise unreachable
        time.sleep(0.2)


def _hear(line: socket.socket, timeout: float = 5.0) -> Line:
    """The one line that the other end says; {} if it says nothing of this kind."""
    line.settimeout(max(timeout, 0.01))
    data = b""
    try:
        while not data.endswith(b"\n") and len(data) < 1 << 22:
            piece = line.recv(1 << 16)
            if not piece:
                return {}
            data += piece
        said = json.loads(data)
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return shown if len(numbers) <= 5 else f"{shown} and {len(numbers) - 5} others"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:59] + "…"
