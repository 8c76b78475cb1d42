"""Starts of a process with the weights on disk: cold, on GPUs with autotuning known, warm."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from specjax.checkpoint.drafters.export import save_drafter
from specjax.checkpoint.load import Model
from specjax.lab.bench.device.files import disk_bandwidth, forget, tensors_of, write_random
from specjax.lab.records import codec
from specjax.lab.records.device import Start, StartRun

PROMPT = 512  # tokens
_ROOM = 1.3  # of the target's bytes, with the drafter and caches


def measure(raw: Mapping[str, Any], target: Model, drafter: Any, directory: str | None) -> Start:
    """Starts processes, each of which loads the checkpoint and writes its first tokens.

    Args:
      raw: config.json of the target.
      target, drafter: of those sizes; the drafter's weights are written.
      directory: where the files go, a gigabyte for every gigabyte of weights; None: where
        temporary files do. They are removed.

    Raises:
      ValueError: in one line, where it cannot be measured.
    """
    if jax.default_backend() == "tpu":
        raise ValueError("a TPU serves one process, and it is this one")
    try:
        place = Path(tempfile.mkdtemp(prefix="specjax-start-", dir=directory))
    except OSError as error:
        raise ValueError(f"--start_dir={directory}: {error.strerror or error}") from None
    try:
        need = _ROOM * 2 * sum(map(math.prod, tensors_of(raw).values()))
        if (free := shutil.disk_usage(place).free) < need:
            raise ValueError(
                f"{place.parent} has {free / 1e9:.1f} GB of the {need / 1e9:.1f} that it takes; "
                "name another --start_dir"
            )
        return _measured(raw, target, drafter, place)
    except OSError as error:
        raise ValueError(f"{place.parent}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _measured(raw: Mapping[str, Any], target: Model, drafter: Any, place: Path) -> Start:
    begin = time.perf_counter()
    size = write_random(raw, place / "target")
    save_drafter(drafter, place / "draft", format="zlab", target=target, dtype="bfloat16")
    written = time.perf_counter() - begin
    forget(place / "target")
    cold_disk, warm_disk = (disk_bandwidth(place / "target") for _ in range(2))
    cache, runs = place / "cache", dict[str, StartRun]()
    gpu = jax.default_backend() == "gpu"  # nothing is tuned elsewhere
    for name in ("cold", "tuned", "warm") if gpu else ("cold", "warm"):
        if name == "tuned":  # what autotuning found stays, what was compiled goes
            for path in cache.glob("*-cache"):
                path.unlink()
        if name == "cold":
            forget(place / "target")
        runs[name] = run(place, cache)
    return Start(size, PROMPT, written, cold_disk, warm_disk, runs)


def run(place: Path, cache: Path) -> StartRun:
    """One start. Raises ValueError, with its last line, where it fails."""
    names = [str(place / "target"), str(place / "draft"), str(cache), str(PROMPT)]
    line = [sys.executable, "-m", "specjax.lab.bench.device.first_token", *names, str(time.time())]
    # Two processes share the device: neither may take most of it at once.
    env = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    ended = subprocess.run(line, capture_output=True, text=True, env=env)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no output"])[-1]
        raise ValueError(f"a start ended with status {ended.returncode}: {last}")
    found = json.loads(ended.stdout.strip().splitlines()[-1])
    return codec.from_json(StartRun, found, "a start")
