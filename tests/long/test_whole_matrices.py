"""The tests of which the suite leaves out what differs little from the rest (`conftest.thinned`).

    python -m pytest -n 0 tests/long/test_whole_matrices.py

Not part of the suite: on two cores this takes about 5 minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = sorted(
    path.stem
    for path in (ROOT / "tests").rglob("test_*.py")
    if re.search(r"\bthinned\(", path.read_text()) and path.parent.name != "long"
)


@pytest.mark.parametrize("name", FILES)
def test_all_of(name: str) -> None:
    path = next((ROOT / "tests").rglob(f"{name}.py"))
    env = {**os.environ, "SPECJAX_WHOLE_MATRICES": "1"}
    if path.parent.name == "multidevice":
        env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    line = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(line, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    collected = [*line, "--collect-only"]
    counts = [
        subprocess.run(collected, env=e, cwd=ROOT, capture_output=True, text=True).stdout
        for e in (env, {**env, "SPECJAX_WHOLE_MATRICES": ""})
    ]
    whole, thin = (text.count("::") for text in counts)
    assert whole > thin > 0  # so that what is left out there is run here
