"""What a result was made with: device, versions, commit, and who else was at work."""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path

import jax

from specjax.core.platform import allowed_kernels, allowed_splits, tuned_here


@dataclasses.dataclass(frozen=True)
class Machine:
    """Whatever times depend on."""

    device: str  # platform and kind, "cpu cpu" or "gpu NVIDIA H100"
    devices: int
    processor: str
    cores: int | None  # that this process may use
    jax: str  # its version

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        processor = platform.processor() or platform.machine()
        info = Path("/proc/cpuinfo")
        if info.exists():
            lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
            processor = lines[0].partition(":")[2].strip() if lines else processor
        able = getattr(os, "sched_getaffinity", None)
        return cls(
            device=device_name(),
            devices=jax.device_count(),
            processor=processor,
            cores=os.cpu_count() if able is None else len(able(0)),
            jax=jax.__version__,
        )


def device_name() -> str:
    """Platform and kind of the first device."""
    device = jax.devices()[0]
    return f"{device.platform} {device.device_kind}"


def versions(*packages: str) -> dict[str, str]:
    """Those of packages, and of Python; which kernels and splits are allowed, if not the usual."""
    found = {**{name: _version(name) for name in packages}, "python": platform.python_version()}
    usual = {"kernels": "attention", "split_k": "off"}
    said = {"kernels": allowed_kernels(), "split_k": allowed_splits()}
    found |= {name: word for name, word in said.items() if word != usual[name]}
    return found if (tuned := tuned_here()) is None else {**found, "choices": tuned.digest}


def gpu_state() -> dict[str, str]:
    """What `nvidia-smi` says of the first GPU of this process now: driver, clocks, power.

    {} where there is no such program, or it does not answer in a line that can be read. A name and
    its unit are the key ("clocks.current.sm [MHz]"), what is "[N/A]" is left out.
    """
    asked = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem"
    asked += ",power.draw,power.limit,temperature.gpu"
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    command = ["nvidia-smi", f"--id={first}", f"--query-gpu={asked}"]
    try:
        said = subprocess.run(
            [*command, "--format=csv,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    if len(said) != 2:
        return {}
    names, values = ([x.strip() for x in line.split(",")] for line in said)
    return {n: v for n, v in zip(names, values) if not v.startswith("[")}


def load() -> tuple[float, ...]:
    """How many processes wanted a core in the last minute; () where the system does not say.

    Taken before a run begins: they are those of others.
    """
    try:
        return (round(os.getloadavg()[0], 2),)
    except (AttributeError, OSError):
        return ()


class Others:
    """How many cores processes other than this one have kept busy since it was made."""

    def __init__(self) -> None:
        self._start = self._now()

    def cores(self) -> tuple[float, ...]:
        """One number, or () where the system does not say."""
        now = self._now()
        if self._start is None or now is None or now[0] <= self._start[0]:
            return ()
        seconds, busy = (b - a for a, b in zip(self._start, now))
        return (round(max(busy / seconds, 0.0), 2),)

    @staticmethod
    def _now() -> tuple[float, float] | None:
        """(a clock, seconds of processor time that others have used)."""
        try:
            first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
            ticks = [int(x) for x in first[1:9]]  # user, nice, system, idle, iowait, irq, ..
            hertz = os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            return None
        used = (sum(ticks) - ticks[3] - ticks[4]) / hertz
        return time.monotonic(), used - sum(os.times()[:4])


@functools.cache  # reading it takes 10 ms, and every trace says it
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def commits() -> tuple[str, ...]:
    """The commit of this checkout, "+" behind it where files differ; () where it is none."""
    where = Path(__file__).resolve().parents[2]
    if not (where / ".git").exists():
        return ()

    def ask(*command: str) -> str:
        try:
            return subprocess.run(
                ["git", *command], cwd=where, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""

    commit = ask("rev-parse", "HEAD")
    changed = ask("status", "--porcelain", "--untracked-files=no", "--", "specjax")
    return (commit + "+" * bool(changed),) if commit else ()


def peak_bytes() -> int | None:
    """The most memory of a device that this process has used; None where it does not tell."""
    stats = [d.memory_stats() or {} for d in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return max(peaks, default=None)
