"""Starts the processes of one run together, and ends them together.

Before JAX connects them they meet at the coordinator's port (`_meet`): JAX ends a process in a C++
stack where one does not come, comes twice, or counts otherwise; here that is one line. The
connections of that meeting stay open as lifelines (`lifeline`): when one process dies, fails, is
frozen or stands still, all say so and end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import sys
import time
from typing import Any, NoReturn

import jax

from specjax.core import files, hosts, pulse
from specjax.core.lifeline import Lifeline, Line

MEETING = 50.0  # seconds in which all processes have to come
HEARTBEAT = 40  # seconds of silence after which JAX ends a process that lost its network
_HEARSAY = 1.5  # seconds in which a death that has happened is noticed
_SHUTDOWN = 15  # seconds for the end, where all have said that they are done
_HELLO = "specjax"


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


def join(
    place: Place,
    told: Line,
    *,
    survives_sigterm: bool = False,
    patience: float = pulse.PATIENCE,
) -> None:
    """Makes this process one of several. Before anything asks JAX for a device.

    Args:
      place: its own.
      told: what it was told to do and with what it does it, JSON values by name; on all processes
        they have to be the same.
      survives_sigterm: whether the program asks for preemption itself
        (`multihost_utils.reached_preemption_sync_point`); SIGTERM no longer ends it then.
      patience: seconds without progress after which all are ended; 0: any number.

    Raises:
      ValueError: in one line, if the processes do not come together, or do not fit together.
    """
    global _lifeline
    deadline = time.monotonic() + MEETING
    lines = _receive(place, told, deadline) if place.process_id == 0 else _meet(place, told)
    _lifeline = Lifeline(lines, place.process_id, patience)
    jax.config.update("jax_enable_preemption_service", survives_sigterm)
    with pulse.doing("connecting", waits=True):
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
    files.guards.append(_lifeline.wait_if_frozen)


def devices() -> dict[str, Any]:
    """What this process has of them, by what it is called."""
    own = jax.local_devices()
    kinds = sorted({f"{d.platform} {d.device_kind}" for d in own})
    return {"kind": kinds, "number on each process": len(own)}


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
    _flush()
    os._exit(status)


def fail(message: str, status: int) -> NoReturn:
    """Ends this process and all others, which print the message; does not wait for anything."""
    _flush()
    if _lifeline is not None:
        _lifeline.fail(message, status)
    os._exit(status)


def _flush() -> None:
    with contextlib.suppress(OSError):  # of a full disk, or of a reader that is gone
        sys.stdout.flush()


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
            own, first = _differing(said["told"].get(name), told.get(name))
            return (
                f"process {process} was started with another {name} than process 0 "
                f"({own}, not {first}); give all the same."
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


def _differing(one: Any, other: Any, most: int = 60) -> tuple[str, str]:
    """Two values as text, of long ones what stands about the first difference."""
    texts = json.dumps(one), json.dumps(other)
    same = next((i for i, (a, b) in enumerate(zip(*texts)) if a != b), min(map(len, texts)))
    begin = 0 if max(map(len, texts)) <= most else max(same - most // 3, 0)

    def part(text: str) -> str:
        cut = text[begin : begin + most]
        return "…" * (begin > 0) + cut + "…" * (begin + most < len(text))

    return part(texts[0]), part(texts[1])
