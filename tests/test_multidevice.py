"""Runs tests/multidevice in a process of its own, with eight fake devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_on_eight_fake_devices() -> None:
    folder = Path(__file__).parent / "multidevice"
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(
        command, env=env, cwd=folder.parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
