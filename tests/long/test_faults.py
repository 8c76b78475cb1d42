"""Whatever happens to one of several processes, all end within a minute and say one thing.

    python -m pytest -n 0 tests/long/test_faults.py

Not part of the suite; docs/long_tests.md has the results. The faults come from outside: signals,
limits of the system, other files and versions under the same names.
"""

from __future__ import annotations

import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import several
from test_several import losses, train
from tiny_checkpoint import write_tiny

FLAGS = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform"
PROMPTS = ["def area(", "class Stack:", "import os", "for i in range(", "x = ", "while True:"]
Processes = list[subprocess.Popen[str]]


def told_by_all(ends: list[several.End], said: str, but: int | None = None) -> None:
    """All but one that is dead ended within a minute, not well, with one line that says it."""
    found = [e for i, e in enumerate(ends) if i != but]
    lines = [[x for x in e.stderr.splitlines() if x.startswith("error: ")] for e in found]
    assert all(e.status not in (0, -9, -6) and e.seconds < 60 for e in found), ends
    assert all(any(said in line for line in said_by) for said_by in lines), lines
    print(f"{max(e.seconds for e in found):5.1f} s  {lines[0][0]}")


def generate(folder: Path, num: int, *more: str, name: str = "texts", times: int = 1) -> list[str]:
    asked = folder / "prompts.txt"
    asked.write_text("".join(p + "\n" for p in PROMPTS * times))
    return [
        *("-m", "experiments.generate", f"--prompt_file={asked}", f"--mesh=data:{num}"),
        *("--drafter=dflash", "--dtype=float32", "--max_new_tokens=40", "--config.batch_size=4"),
        *("--config.compare_plain=False", f"--output={folder}/{name}.jsonl", *more),
    ]


@pytest.mark.parametrize("missing", [1, 0])
def test_missing_at_the_start(missing: int, tmp_path: Path) -> None:
    """Also a coordinator that cannot be reached."""
    ends = several.start(2, generate(tmp_path, 2), come=[1 - missing])
    said = "process 1 did not come to 127.0.0.1" if missing else "no process 0 answers there"
    told_by_all(ends, said)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP", "sleep"])
@pytest.mark.parametrize("victim", [0, 1])
def test_one_dies_freezes_or_sleeps_while_another_waits(how: str, victim: int) -> None:
    def wake(processes: Processes) -> None:
        if how == "SIGSTOP":
            began = time.monotonic()
            assert processes[1 - victim].wait(100.0) == 1
            assert time.monotonic() - began < 60.0
            processes[victim].send_signal(signal.SIGCONT)

    ends = several.start(2, ["tests/dying.py", str(victim), how], meanwhile=wake, timeout=100.0)
    said = {
        "SIGKILL": "died",  # in JAX's words where process 0, which runs its service, is killed
        "SIGSTOP": "gave no sign of life for 20 seconds",
        "sleep": "made no progress for 40 seconds: at work, at ",
    }
    told_by_all(ends, f"process {victim}: {said[how]}", but=victim if how == "SIGKILL" else None)


@pytest.mark.parametrize("seconds", [2.0, 5.0, 8.0, 11.0])
def test_one_freezes_at_any_time(seconds: float, tmp_path: Path) -> None:
    """While it starts, loads, compiles for the first time, prefills and decodes."""
    victim = int(seconds) % 2

    def freeze(processes: Processes) -> None:
        time.sleep(seconds)
        processes[victim].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert processes[1 - victim].wait(100.0) not in (0, -6)
        assert time.monotonic() - began < 60.0
        processes[victim].send_signal(signal.SIGCONT)

    arguments = generate(tmp_path, 2, "--max_new_tokens=400", "--config.compilation_cache=")
    ends = several.start(2, arguments, meanwhile=freeze, timeout=100.0)
    assert ends[victim].status not in (0, -9)
    told_by_all(ends, "error: ")
    assert several.start(2, arguments)[0].status == 0


def test_one_freezes_while_training_evaluates(tmp_path: Path) -> None:
    def freeze(processes: Processes) -> None:
        while not (tmp_path / "run" / "run.json").exists():
            assert all(p.poll() is None for p in processes)
            time.sleep(0.02)
        time.sleep(1.0)  # the target writes the texts of the evaluation
        processes[1].send_signal(signal.SIGSTOP)
        assert processes[0].wait(100.0) == 1
        processes[1].send_signal(signal.SIGCONT)

    ends = several.start(2, train(tmp_path, "run", "data:2"), meanwhile=freeze, timeout=100.0)
    told_by_all(ends, "process 1: gave no sign of life")


def other_versions(folder: Path) -> dict[str, Any]:
    about = folder / "flax-0.0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: flax\nVersion: 0.0.1\n")
    return {"env": {"PYTHONPATH": f"{folder}{os.pathsep}{several.ROOT}"}}


def other_code(folder: Path) -> dict[str, Any]:
    for name in ("specjax", "experiments", "configs"):
        shutil.copytree(several.ROOT / name, folder / name)
    with (folder / "specjax" / "decode.py").open("a") as file:
        file.write("# changed\n")
    return {"cwd": folder, "env": {"PYTHONPATH": str(folder)}}


def own_method(folder: Path, text: str) -> dict[str, Any]:
    folder.mkdir()
    (folder / "mine.py").write_text(text)
    return {"cwd": folder}


def own_prompts(folder: Path, text: str) -> dict[str, Any]:
    folder.mkdir()
    (folder / "asked.txt").write_text(text)
    return {"cwd": folder}


def own_target(folder: Path, change: Callable[[Path], None]) -> dict[str, Any]:
    folder.mkdir()
    write_tiny(folder / "target")
    change(folder / "target")
    return {"cwd": folder}


def other_weight(target: Path) -> None:
    path = target / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def other_tokenizer(target: Path) -> None:
    path = target / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=3))


_METHOD = "from specjax.drafters import NGram\n\nMine = NGram\n"


@pytest.mark.parametrize(
    "what, more, make, said",
    [
        ("versions", [], lambda f: {1: other_versions(f)}, "another version of flax"),
        ("code", [], lambda f: {1: other_code(f)}, "another code of specjax"),
        (
            "method",
            ["--drafter=mine.py:Mine:4"],
            lambda f: {
                0: own_method(f / "0", _METHOD),
                1: own_method(f / "1", _METHOD + "# changed\n"),
            },
            "another content of mine.py",
        ),
        (
            "settings of JAX",
            [],
            lambda f: {1: {"env": {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}}},
            "another value of jax_default_matmul_precision",
        ),
        (
            "devices",
            [],
            lambda f: {1: {"env": {"XLA_FLAGS": f"{FLAGS}_device_count=3"}}},
            "The devices, number on each process",
        ),
        (
            "prompts",
            ["--prompt_file=asked.txt"],
            lambda f: {0: own_prompts(f / "0", "a\nb\n"), 1: own_prompts(f / "1", "a\nc\n")},
            "The prompts",
        ),
        (
            "weights",
            ["--target=target"],
            lambda f: {
                0: own_target(f / "0", lambda t: None),
                1: own_target(f / "1", other_weight),
            },
            "The files of target, model.safetensors",
        ),
        (
            "tokenizer",
            ["--target=target"],
            lambda f: {
                0: own_target(f / "0", lambda t: None),
                1: own_target(f / "1", other_tokenizer),
            },
            "The files of target, tokenizer.json",
        ),
    ],
)
def test_what_differs_is_named(what, more, make, said, tmp_path: Path) -> None:
    given = [*generate(tmp_path, 2), "--drafter=ngram:4", *more]  # the last of a name counts
    ends = several.start(2, given, other=make(tmp_path))
    told_by_all(ends, said)
    assert all("rocess 1" in e.stderr for e in ends)


def test_another_config_under_the_same_name(tmp_path: Path) -> None:
    text = (several.ROOT / "configs" / "train_dflash.py").read_text()
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "mine.py").write_text(f"{text}\n# {i}\n")
    arguments = [
        "--config=mine.py" if a.startswith("--config=") else a for a in train(tmp_path, "run", "")
    ]
    other = {i: {"cwd": tmp_path / str(i)} for i in range(2)}
    ends = several.start(2, arguments, other=other)
    told_by_all(ends, "process 1 was started with another content of mine.py")


def test_a_working_directory_that_is_not_shared(tmp_path: Path) -> None:
    other = {}
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        other[i] = {"cwd": tmp_path / str(i)}
    arguments = [
        a.replace("configs/", f"{several.ROOT}/configs/")
        for a in train(tmp_path, "run", "data:2", "--workdir=run")
    ]
    told_by_all(several.start(2, arguments, other=other), "--workdir=run is not shared")


def limit(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_while_texts_are_written(tmp_path: Path) -> None:
    """What is finished is kept, and the run goes on."""
    output = tmp_path / "texts.jsonl"
    arguments = generate(tmp_path, 2, "--max_new_tokens=200")
    small = {0: {"preexec_fn": functools.partial(limit, 8000)}}
    ends = several.start(2, arguments, other=small)
    told_by_all(ends, "texts.jsonl could not be written")
    kept = output.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    assert kept
    assert {e.status for e in several.start(2, arguments)} == {0}
    assert output.read_bytes().startswith(kept)
    assert len(output.read_text().splitlines()) == len(PROMPTS)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_full_disk_while_a_checkpoint_is_written(victim: int, tmp_path: Path) -> None:
    """One of two processes cannot write its part: all end, and the checkpoint before is whole."""
    workdir = tmp_path / "run"
    arguments = train(tmp_path, "run", "data:2", "--config.checkpoint_every=1", "--config.steps=3")

    def fill(processes: Processes) -> None:
        while not (workdir / "checkpoints" / "1").exists():
            assert all(p.poll() is None for p in processes)
            time.sleep(0.01)
        resource.prlimit(processes[victim].pid, resource.RLIMIT_FSIZE, (20_000, 20_000))

    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGXFSZ, signal.SIG_IGN)}
    ends = several.start(2, arguments, meanwhile=fill, other={victim: ignore})
    # Where Orbax has its threads waiting for each other by then, that is what is said.
    stuck = "saving step" in ends[0].stderr
    told_by_all(ends, "nor did any other: saving step" if stuck else "could not be written")
    assert (workdir / "checkpoints" / "1").exists()
    ends = several.start(2, arguments)
    assert {e.status for e in ends} == {0}, [e.stderr[-2000:] for e in ends]
    assert "going on to 3" in ends[0].stdout + ends[0].stderr


def train_on_rows(folder: Path, bad: dict[int, str], num: int = 12) -> list[str]:
    """Training on ``num`` lines, of which two processes read half each; ``bad`` are others."""
    row = json.dumps({"tokens": [50, 60, 70, 80] * 8, "prompt_tokens": 9})
    lines = [bad.get(i, row).ljust(len(row)) for i in range(1, num + 1)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    data = f"--config.data.train=('{folder}/rows.jsonl',)"
    return train(folder, "run", "data:2", data, "--config.rows=2")


@pytest.mark.parametrize("bad, said", [((4, 9), 4), ((9, 11), 9), ((3,), 3)])
def test_the_first_bad_line_is_told_by_all(bad: tuple, said: int, tmp_path: Path) -> None:
    """Whosever block it is in; what was swapped is gone."""
    arguments = train_on_rows(tmp_path, dict.fromkeys(bad, "[1]"))
    told_by_all(several.start(2, arguments), f"rows.jsonl, line {said}: not an object")
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]
    ends = several.start(2, [*arguments, "--config.data.bad_lines=skip", "--config.steps=2"])
    assert {e.status for e in ends} == {0}, [e.stderr[-2000:] for e in ends]
    assert f"{len(bad)} of 12 lines are skipped: line {said}: not" in ends[0].stdout


@pytest.mark.parametrize("victim", [0, 1])
def test_a_full_disk_while_rows_are_swapped(victim: int, tmp_path: Path) -> None:
    small = {victim: {"preexec_fn": functools.partial(limit, 10_000)}}  # a lock fits, no rows
    ends = several.start(2, train_on_rows(tmp_path, {}, 400), other=small)
    told_by_all(ends, f".rows-{victim}: File too large")
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.parametrize("script", ["generate", "regenerate"])
def test_ten_kills_leave_the_output_of_an_undisturbed_run(script: str, tmp_path: Path) -> None:
    """One of four is killed, ten times at random; each time the same command goes on."""

    def command(name: str) -> list[str]:
        if script == "generate":
            return generate(tmp_path, 4, "--temperature=0.8", name=name, times=6)
        return [
            *("-m", "experiments.regenerate", f"--output={tmp_path}/{name}.jsonl"),
            *("--config.num_prompts=36", "--config.max_new_tokens=32", "--config.batch=4"),
            *("--config.mesh=data:4", "--config.dtype=float32", "--config.temperature=0.8"),
        ]

    ends = several.start(4, command("straight"))
    assert {e.status for e in ends} == {0}, [e.stderr[-2000:] for e in ends]
    chance, output = random.Random(14), tmp_path / "killed.jsonl"
    for _ in range(10):
        victim, more, later = chance.randrange(4), 1 + chance.randrange(4), chance.uniform(0.0, 2.0)
        before = written(output)

        def kill(processes: Processes, victim=victim, at=before + more, later=later) -> None:
            while written(output) < at and all(p.poll() is None for p in processes):
                time.sleep(0.02)
            time.sleep(later)
            processes[victim].send_signal(signal.SIGKILL)

        ends = several.start(4, command("killed"), meanwhile=kill, timeout=100.0)
        print(f"process {victim}: {written(output)} lines, {max(e.seconds for e in ends):.1f} s")
        assert before <= written(output)
        over = {e.status for i, e in enumerate(ends) if i != victim} == {0}
        for i, end in enumerate(ends):
            assert i == victim or over or (end.status != 0 and end.seconds < 60), ends
    assert {e.status for e in several.start(4, command("killed"))} == {0}
    assert texts(output) == texts(tmp_path / "straight.jsonl")


def written(path: Path) -> int:
    """How many whole lines a file has."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def texts(path: Path) -> list[Any]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("seconds", "cycles")} for record in found]


def test_kills_leave_the_training_of_an_undisturbed_run(tmp_path: Path) -> None:
    settings = ["--config.checkpoint_every=1", "--config.steps=6", "--config.eval_every=6"]
    began = time.monotonic()
    ends = several.start(4, train(tmp_path, "straight", "data:4", *settings))
    whole = time.monotonic() - began
    assert {e.status for e in ends} == {0}, [e.stderr[-2000:] for e in ends]
    chance = random.Random(14)
    for _ in range(4):
        victim, moment = chance.randrange(4), chance.uniform(0.4, 0.95) * whole

        def kill(processes: Processes, victim=victim, moment=moment) -> None:
            time.sleep(moment)
            processes[victim].send_signal(signal.SIGKILL)

        ends = several.start(4, train(tmp_path, "killed", "data:4", *settings), meanwhile=kill)
        assert all(e.seconds < 60 for e in ends)
        print(f"process {victim} after {moment:.1f} of {whole:.1f} s: {ends[0].stderr[-90:]!r}")
    ends = several.start(4, train(tmp_path, "killed", "data:4", *settings))
    assert {e.status for e in ends} == {0}, [e.stderr[-2000:] for e in ends]
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
