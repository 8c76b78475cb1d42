"""Several processes of one run, on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class End:
    """How one of them ended."""

    status: int
    stdout: str
    stderr: str
    seconds: float  # after `meanwhile`


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def start(
    num: int,
    arguments: Sequence[str],
    *,
    devices: int = 1,
    meanwhile: Callable[[list[subprocess.Popen[str]]], None] = lambda processes: None,
    timeout: float = 600.0,
    come: Sequence[int] | None = None,
    other: Mapping[int, Mapping[str, Any]] | None = None,
) -> list[End]:
    """Runs ``python ARGUMENTS`` in ``num`` processes that know of one another.

    Args:
      num: how many.
      arguments: of all.
      devices: of each.
      meanwhile: called with the processes; what it does not end has to end by itself.
      timeout: seconds in which they have to end.
      come: those that are started; None: all.
      other: what is different for one: its ``env``, and other arguments of `subprocess.Popen`.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    other = other or {}
    coordinator = f"--coordinator=127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as files:
        processes, outputs = [], []
        for i in range(num) if come is None else come:
            streams = [
                files.enter_context(open(f"{directory}/{i}.{name}", "w+"))
                for name in ("stdout", "stderr")
            ]
            own = [coordinator, f"--num_processes={num}", f"--process_id={i}"]
            command = [sys.executable, *arguments, *own]
            how: dict[str, Any] = {"cwd": ROOT, **other.get(i, {})}
            how["env"] = {**env, **how.get("env", {})}
            process = subprocess.Popen(
                command, stdout=streams[0], stderr=streams[1], text=True, **how
            )
            processes.append(process)
            outputs.append(streams)
        try:
            meanwhile(processes)
            began, ends = time.monotonic(), []
            for process, streams in zip(processes, outputs, strict=True):
                status = process.wait(max(began + timeout - time.monotonic(), 0.1))
                seconds = time.monotonic() - began
                for stream in streams:
                    stream.seek(0)
                ends.append(End(status, *(stream.read() for stream in streams), seconds))
            return ends
        finally:
            for process in processes:
                process.kill()
                process.wait()
