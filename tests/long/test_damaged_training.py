"""What lies in a workdir is damaged between two runs; the second one ends as if it were not.

python -m pytest -n 0 tests/long
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from runs import Place, digest, finish, result, same


@pytest.fixture(scope="module", params=["train_lm", "train_drafter"])
def runs(request, tmp_path_factory) -> tuple[Place, Path, Path]:
    """Where runs read, one that was not disturbed, and one that was stopped."""
    root = tmp_path_factory.mktemp(request.param)
    place = Place(request.param, root)
    code, _, err = place.train(root / "straight")
    assert code == 0, err
    process = place.start(root / "stopped")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 12/"):
            process.send_signal(signal.SIGTERM)
            break
    code, _, err = finish(process)
    assert code == 42 and "Traceback" not in err, err
    return place, root / "straight", root / "stopped"


def newest(workdir: Path) -> Path:
    steps = [p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
    return max(steps, key=lambda p: int(p.name))


def largest(checkpoint: Path) -> Path:
    return max(checkpoint.rglob("*/d/*"), key=lambda p: p.stat().st_size)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


# What is done to a workdir, and what is said of it.
DAMAGES = {
    "newest halved": (lambda w: halve(largest(newest(w))), "is damaged"),
    "newest, one bit": (lambda w: flip(largest(newest(w))), "is damaged"),
    "newest empty": (lambda w: empty(newest(w)), "is damaged"),
    "sums emptied": (lambda w: (w / "checkpoints.sums.json").write_text(""), ""),
    "checkpoints gone": (lambda w: shutil.rmtree(w / "checkpoints"), "begins anew"),
    "line cut": (lambda w: (w / "metrics.jsonl").open("a").write('{"step": 13, "lo'), ""),
    "greedy.json halved": (lambda w: [halve(p) for p in w.glob("greedy.json")], ""),
    "trace emptied": (lambda w: [p.write_text("") for p in w.glob("trace.jsonl")], ""),
    "tokenizer halved": (lambda w: [halve(p) for p in w.glob("tokenizer.json")], ""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_ends_as_if_it_were_whole(runs, damage, tmp_path):
    place, straight, stopped = runs
    workdir = tmp_path / "run"
    shutil.copytree(stopped, workdir)
    change, said = DAMAGES[damage]
    change(workdir)
    code, _, err = place.train(workdir)
    assert code == 0 and said in err, err
    same(workdir, straight)


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_damaged_run_file_is_named_and_nothing_is_touched(runs, content, tmp_path):
    place, _, stopped = runs
    workdir = tmp_path / "run"
    shutil.copytree(stopped, workdir)
    (workdir / "run.json").write_text(content)
    before = digest(workdir / "checkpoints")
    code, _, err = place.train(workdir)
    assert code == 2 and "run.json" in err and err.count("\n") == 1, err
    assert digest(workdir / "checkpoints") == before


def test_lost_records_are_said(runs, tmp_path):
    place, straight, stopped = runs
    workdir = tmp_path / "run"
    shutil.copytree(stopped, workdir)
    (workdir / "metrics.jsonl").write_bytes(b"\xff\xfe")
    code, _, err = place.train(workdir)
    assert code == 0 and "metrics.jsonl is damaged" in err, err
    (records, weights), (_, expected) = result(workdir), result(straight)
    assert records[0]["step"] > 12
    assert all((weights[name] == value).all() for name, value in expected.items())


def test_settings_that_may_change_and_those_that_may_not(runs, tmp_path):
    place, straight, stopped = runs
    workdir = tmp_path / "run"
    shutil.copytree(stopped, workdir)
    code, _, err = place.train(workdir, peak_lr=0.5)
    assert code == 2 and "another peak_lr" in err and err.count("\n") == 1, err
    code, _, err = place.train(workdir, eval_every=12, checkpoint_every=7)
    assert code == 0, err
    (_, weights), (_, expected) = result(workdir), result(straight)
    assert all((weights[name] == value).all() for name, value in expected.items())
    code, _, err = place.train(workdir)
    assert code == 0 and "it is finished" in err, err


def test_a_second_process_is_refused(runs, tmp_path):
    place, straight, stopped = runs
    workdir = tmp_path / "run"
    shutil.copytree(stopped, workdir)
    first = place.start(workdir)
    assert first.stdout is not None
    first.stdout.readline()
    code, _, err = place.train(workdir)
    assert code == 2 and f"process {first.pid} on " in err and err.count("\n") == 1, err
    code, _, err = finish(first)
    assert code == 0, err
    same(workdir, straight)


def test_a_full_disk(runs, tmp_path):
    """As root, on a file system of its own: the run goes on when there is room."""
    place, straight, _ = runs
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=560k", "tmpfs", str(mounted)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems are mounted by root alone")
    try:
        code, _, err = place.train(mounted / "run")
        assert code == 2 and "could not be written" in err, err
        subprocess.run(["mount", "-o", "remount,size=64m", str(mounted)], check=True)
        code, _, err = place.train(mounted / "run")
        assert code == 0, err
        same(mounted / "run", straight)
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
