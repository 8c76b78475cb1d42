"""Training killed, stopped and starved at random moments ends as if nothing had happened.

    python -m pytest -n 0 tests/long

docs/long_tests.md has the results. Not part of the suite: this takes about 40 minutes.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from runs import Place, finish, same

TIMES = 20


class Straight:
    """A run that nobody disturbs, and how long it takes."""

    def __init__(self, script: str, root: Path):
        self.place, self.workdir = Place(script, root), root / "straight"
        began = time.monotonic()
        code, _, err = self.place.train(self.workdir)
        assert code == 0, err
        self.seconds = time.monotonic() - began


@pytest.fixture(scope="module", params=["train_lm", "train_drafter"])
def straight(request, tmp_path_factory) -> Straight:
    return Straight(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_at_random_moments(straight, number, tmp_path):
    """Twenty times; a run that is finished by then is compared, and another one begun."""
    moments = random.Random(int(number))
    run, statuses = 0, []
    while len(statuses) < TIMES:
        workdir = tmp_path / f"run{run}"
        process = straight.place.start(workdir)
        try:
            out, err = process.communicate(timeout=moments.uniform(0.02, 1) * straight.seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            code, out, err = finish(process, 60)
            statuses.append(code)
            assert "Traceback" not in err, err
        else:
            assert process.returncode == 0, err
            same(workdir, straight.workdir)
            run += 1
        print(run, process.returncode, out[-100:].strip(), err[-200:].strip(), sep=" | ")
    code, _, err = straight.place.train(tmp_path / f"run{run}")
    assert code == 0, err
    same(tmp_path / f"run{run}", straight.workdir)
    assert not list((tmp_path / f"run{run}").glob("**/*.tmp"))
    ended = {
        signal.SIGKILL: {-9},
        signal.SIGTERM: {42, -15, 0},  # 42: saved; 0: it was over in that moment
        signal.SIGINT: {130, -2, 0},  # -2: before Python itself had begun
    }
    assert set(statuses) <= ended[number], statuses
