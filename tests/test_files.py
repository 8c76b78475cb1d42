"""Files that two processes want, that are damaged, or that cannot be written."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from made_traces import speculative

from specjax.core import files
from specjax.core.machine import Machine
from specjax.lab.bench.store import Store
from specjax.lab.records.run import Run, Target
from specjax.runs import lines as lines_of
from specjax.runs import places
from specjax.runs.results import ResultFile
from specjax.runs.settings import Place, differences
from specjax.trace import trace_file

ROOT = Path(__file__).resolve().parent.parent
HOLDER = """
import sys, time
from pathlib import Path
from specjax.runs.places import Lock
lock = Lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def hold(path: Path) -> subprocess.Popen:
    """A process that has the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    return process


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    first = hold(path)
    try:
        with pytest.raises(ValueError, match=rf"is being written by process {first.pid} on "):
            ResultFile(path, {}, [{"prompt": "a"}])
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    results = ResultFile(path, {}, [{"prompt": "a"}])  # the lock of the dead is taken over
    results.append({"prompt": "a"})
    with pytest.raises(ValueError, match=rf"process {os.getpid()} "):
        ResultFile(path, {}, [{"prompt": "a"}])
    results.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.settings.json"]


def test_a_lock_of_another_host_lives_as_long_as_its_sign_of_life(tmp_path: Path) -> None:
    lock = tmp_path / "out.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    with pytest.raises(ValueError, match="process 7 on elsewhere"):
        places.Lock(tmp_path / "out")
    long_ago = time.time() - places.STALE_AFTER - 1
    os.utime(lock, (long_ago, long_ago))
    places.Lock(tmp_path / "out").release()
    assert not lock.exists()


def test_what_is_written_is_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_atomically(path, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, hard))  # the system refuses to write more
    try:
        with pytest.raises(OSError):
            files.write_atomically(path, "new" * 2**12)
        with pytest.raises(ValueError, match="nothing can be written there"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
            places.take_file(tmp_path / "trace.jsonl", "--trace")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


WRITER = """
import sys
from pathlib import Path
from specjax.core.files import write_atomically

path, letter = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.read()
for _ in range(150):
    write_atomically(path, letter * 50_000)
"""


def test_two_processes_may_write_one_file(tmp_path: Path) -> None:
    """Each write is whole; what a killed writer left is taken over, and nothing is left."""
    path = tmp_path / "file"
    (tmp_path / "file.tmp").write_text("of one that was killed, and longer than what follows")
    files.write_atomically(path, "first")
    assert path.read_text() == "first" and [p.name for p in tmp_path.iterdir()] == ["file"]
    with (tmp_path / "file.tmp").open("wb") as held:  # of one at work
        fcntl.flock(held, fcntl.LOCK_EX)
        files.write_atomically(path, "second")
        assert path.read_text() == "second" and (tmp_path / "file.tmp").exists()
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    pipes["env"] = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, letter], **pipes) for letter in "ab"]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    while any(writer.poll() is None for writer in writers):
        assert path.read_text() in ("second", "a" * 50_000, "b" * 50_000)
    assert [writer.wait() for writer in writers] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("place", "message"),
    [("file/below", "cannot be made|lies in no"), ("file", ""), ("nowhere/out", "lies in no")],
)
def test_places_are_tried_before_any_work(place: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    if message:
        with pytest.raises(ValueError, match=message):
            places.take_file(tmp_path / place, "--output")
    if place != "nowhere/out":
        with pytest.raises(ValueError, match=r"is a file|cannot be made"):
            places.take_directory(tmp_path / place, "--workdir")


def test_only_ordinary_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null"), tmp_path):
        with pytest.raises(ValueError, match="not an ordinary file"):
            files.read_bytes(path)
    (tmp_path / "deep").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        files.read_json(tmp_path / "deep")
    with pytest.raises(ValueError, match=r"not a trace|not an ordinary file"):
        trace_file.load(tmp_path / "pipe")


def lines(tmp_path: Path) -> list[dict]:
    trace_file.save(speculative(), tmp_path / "trace.jsonl")
    return [json.loads(line) for line in (tmp_path / "trace.jsonl").open()]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("end", {"rows": 10**12}),
        ("end", {"rows": -1}),
        ("end", {"rows": "many"}),
        ("cycle", {"request": 10**12}),
        ("cycle", {"request": 0.5}),
        ("cycle", {"committed": 10**12}),
        ("cycle", {"accepted": 10**9}),
        ("cycle", {"accepted": -1}),
        ("cycle", {"pos": "5"}),
        ("cycle", {"begin": float("inf")}),
        ("cycle", {"draft_ids": "abc"}),
        ("cycle", {"emitted_ids": [1] * 99}),
        ("text", {"pieces": [1]}),
        ("text", {"seed": None}),
        ("text", {"guesses": {"x": "y"}}),
    ],
)
def test_a_trace_that_lies_is_refused_in_one_line(kind: str, change: dict, tmp_path: Path) -> None:
    whole = lines(tmp_path)
    next(record for record in whole if record["type"] == kind).update(change)
    path = tmp_path / "lies.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in whole))
    with pytest.raises(ValueError, match=r"lies\.jsonl") as error:
        trace_file.load(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "7"])
def test_a_damaged_file_of_a_benchmark_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json"):
        Store(tmp_path).read_run()
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match=r"run\.json is missing"):
        Store(tmp_path).read_run()


def test_a_benchmark_killed_before_its_first_line_begins_again(tmp_path: Path) -> None:
    run = Run(
        config={"seed": 0},
        prompts_sha256="",
        target=Target("x"),
        machine=Machine.here(),
        versions={"jax": "0"},
    )
    for left in ("prompts.jsonl", "prompts.jsonl.tmp", "run.json.tmp", ".lock", "answers.jsonl"):
        path = tmp_path / left.strip(".")
        path.mkdir()
        (path / left).write_text("")
        assert Store(path).begin(run, []) == run == Store(path).read_run()
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds no benchmark run"):
        Store(tmp_path / "else").begin(run, [])


def test_a_benchmark_with_other_weights_is_another(tmp_path: Path) -> None:
    """Under the same name, too: a tau over both would be of neither."""
    run = Run(
        config={"seed": 0},
        prompts_sha256="",
        target=Target("x"),
        machine=Machine.here(),
        versions={"jax": "0"},
    )
    weights = lambda sha: {"d": {"model.safetensors": sha}}
    Store(tmp_path).begin(dataclasses.replace(run, checkpoints=weights("a")), [])
    with pytest.raises(
        ValueError, match=r"holds a run with another checkpoints\.d: .*model\.safet"
    ):
        Store(tmp_path).begin(dataclasses.replace(run, checkpoints=weights("b")), [])
    old = dataclasses.replace(run, checkpoints=None)  # of a version that did not say
    assert Store(tmp_path / "old").begin(old, []) == old
    Store(tmp_path / "old").begin(dataclasses.replace(run, checkpoints=weights("a")), [])


def test_a_line_that_cannot_be_written_names_its_file() -> None:
    with (
        open("/dev/full", "ab", buffering=0) as full,
        pytest.raises(OSError, match=r"No space left on device: '/dev/full'"),
    ):
        files.add_line(full, "{}")


@pytest.mark.parametrize("content", ["[1, 2]", "5", "null", "[[[1], 2]]", "[" * 4000, ""])
def test_a_lock_without_a_holder_is_taken_over(content: str, tmp_path: Path) -> None:
    lock = tmp_path / "out.lock"
    lock.write_text(content)
    with places.Lock(tmp_path / "out"):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("kind", ["pipe", "lock is a pipe", "lock is a directory", "long", "loop"])
def test_a_place_that_cannot_be_a_file_is_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("a" * 253 if kind == "long" else "out")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "lock is a pipe":
        os.mkfifo(tmp_path / "out.lock")
    elif kind == "lock is a directory":
        (tmp_path / "out.lock").mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"^[^\n]*(--output=|\.lock)[^\n]*$"):
        places.take_file(path, "--output")
    assert sorted(tmp_path.iterdir()) == before  # nothing replaced or left behind


def test_a_line_that_a_kill_cut_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert lines_of.read(path) == []
    lines_of.append(path, {"a": 1})
    with path.open("ab") as file:
        file.write(b'{"a": "cut')
    before = path.read_bytes()
    assert lines_of.read(path) == [{"a": 1}] and path.read_bytes() == before  # reading is reading
    lines_of.append(path, {"a": 2}, durable=False)
    assert path.read_bytes() == b'{"a": 1}\n{"a": 2}\n'
    path.write_bytes(b'{"a": 1}\n7\n\n{"a": 3}\n')
    assert list(lines_of.scan(path)) == [{"a": 1}, None, None, {"a": 3}]
    with pytest.raises(ValueError, match=r"lines\.jsonl, line 2: damaged"):
        lines_of.read(path)


def test_runs_are_told_apart_by_name(tmp_path: Path) -> None:
    place = Place(tmp_path, tmp_path / "run.json", "--workdir")
    began = {"seed": 0, "model": {"width": 4, "depth": 2}, "files": {"a.py": "x"}, "note": "any"}
    place.claim(began)
    place.claim({**began, "note": "other", "later": None}, free=["note"])
    told = r"another model\.width, seed: it was written with model\.width=4, this one has 8; use "
    with pytest.raises(ValueError, match=told + "another --workdir"):
        place.claim({**began, "seed": 1, "model": {"width": 8, "depth": 2}})
    found = [d.told("it") for d in differences(began, {**began, "files": {"a.py": "y"}})]
    assert found == ['files={"a.py": "x"}, it has {"a.py": "y"}']
    (lacking,) = differences({**began, "pack": True}, began)
    assert lacking.told("it") == "pack=true, it has nothing of it"
