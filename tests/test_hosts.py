"""Several processes: where each stands, how they meet, write one text, and end together."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import several
import together
from safetensors.numpy import load_file
from tiny_checkpoint import write_tiny

from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.located import contents, unchanged
from specjax.cli.processes import shared_arguments
from specjax.core import alike, hosts, launch, pulse
from specjax.core.cluster import find_place
from specjax.core.files import Superseded, check_allowed, write_atomically
from specjax.core.launch import Place
from specjax.core.lifeline import stands_still
from specjax.core.sharding import mesh_sizes, parse_mesh
from specjax.runs import lines
from specjax.runs.places import Lock
from specjax.runs.settings import Place as Place_
from specjax.trace import trace_file

SLURM = {
    "SLURM_JOB_ID": "70000",
    "SLURM_STEP_NODELIST": "node[07-09],other",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
NEWER_MPI = {k: v for k, v in OPEN_MPI.items() if k != "OMPI_MCA_orte_hnp_uri"}
ADDRESS = "10.0.0.1:1234"
DIED = "died without a word, so this run cannot go on; see its output"


@pytest.mark.parametrize(
    "given, environment, place",
    [
        ((None, None, None), {}, None),
        ((ADDRESS, 1, 0), {}, None),
        ((None, 1, None), SLURM, None),  # one process alone, in the midst of others
        ((ADDRESS, 2, 1), {}, (ADDRESS, 2, 1, None)),
        ((ADDRESS, 2, 1), SLURM, (ADDRESS, 2, 1, None)),  # flags win
        ((None, None, None), SLURM, (f"node07:{61440 + 70000 % 4096}", 3, 2, (0,))),
        (("auto", None, None), SLURM, (f"node07:{61440 + 70000 % 4096}", 3, 2, (0,))),
        ((None, None, None), {**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, None),  # a shell of a job
        ((None, None, None), {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "3"}, None),  # a login shell
        (
            (None, None, None),  # one process a node: all of its GPUs
            {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x3)", "SLURM_GPUS_ON_NODE": "4"},
            (f"node07:{61440 + 70000 % 4096}", 3, 2, (0, 1, 2, 3)),
        ),
        ((None, None, None), OPEN_MPI, (f"10.96.0.1:{61440 + 373920 % 4096}", 4, 1, (1,))),
        ((ADDRESS, None, None), NEWER_MPI, (ADDRESS, 4, 1, None)),
        ((None, None, None), {"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ],
)
def test_a_process_finds_its_place(given, environment, place, monkeypatch) -> None:
    for name in {**SLURM, **OPEN_MPI}:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = find_place(*given, environment)
    if place is None:
        assert found is None
    else:
        assert found is not None
        assert tuple(vars(found).values()) == place


@pytest.mark.parametrize(
    "given, environment, said",
    [
        ((ADDRESS, 2, 2), {}, "--process_id=2: must be from 0 to 1"),
        ((ADDRESS, 2, -1), {}, "--process_id=-1"),
        ((ADDRESS, 0, 0), {}, "--num_processes=0"),
        ((ADDRESS, 2, None), {}, "needs --process_id"),
        ((ADDRESS, None, 1), {}, "needs --num_processes"),
        ((ADDRESS, None, None), {}, "needs --num_processes"),
        ((None, 2, 0), {}, "need --coordinator=HOST:PORT"),
        ((None, None, 0), {}, "need --coordinator=HOST:PORT"),
        (("10.0.0.1", 2, 0), {}, "not HOST:PORT"),
        (("10.0.0.1:99999", 2, 0), {}, "not HOST:PORT"),
        ((":1234", 2, 0), {}, "not HOST:PORT"),
        (("auto", 2, None), {}, "leave them out"),
        (("auto", None, None), {}, "JAX finds no coordinator here"),
        ((None, None, None), NEWER_MPI, "Open MPI started 4 processes, but JAX finds no coord"),
    ],
)
def test_flags_that_do_not_fit_are_refused(given, environment, said, monkeypatch) -> None:
    for name in {**SLURM, **OPEN_MPI}:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=said):
        find_place(*given, environment)


def test_the_processes_are_told_the_same() -> None:
    line = ["x.py", "--seed=3", "--process_id", "1", "--num_processes=2", "--details"]
    assert shared_arguments(line) == ["--details", "--seed=3"]
    assert shared_arguments([*line, "--coordinator", ADDRESS]) == ["--details", "--seed=3"]


def test_alone_nothing_is_waited_for() -> None:
    value = object()
    assert hosts.is_first() and hosts.count() == 1
    assert hosts.from_first("anything", lambda: value) is value
    assert hosts.from_all("anything", value) == [value]
    hosts.barrier("nobody else", timeout=0.0)
    hosts.check_alike("objects", value)
    launch.leave()


def meet(told: dict[int, dict], num: int, ids: list[int], counts: list[int] | None = None):
    """What each of some processes, here threads, is told when they meet."""
    port = several.free_port()
    ends: list[object] = [None] * len(ids)

    def come(i: int) -> None:
        place = Place(f"127.0.0.1:{port}", (counts or [num] * len(ids))[i], ids[i])
        try:
            deadline = time.monotonic() + launch.MEETING
            given = told.get(i, {"seed": 1})
            first = ids[i] == 0
            lines = launch._receive(place, given, deadline) if first else launch._meet(place, given)
            ends[i] = sorted(lines)
            for line in lines.values():
                line.close()
        except ValueError as error:
            ends[i] = str(error)

    threads = [threading.Thread(target=come, args=(i,)) for i in range(len(ids))]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    return ends


@pytest.mark.parametrize(
    "told, ids, counts, said",
    [
        ({}, [0, 1, 1], None, "--process_id=1 was given to two processes"),
        (
            {},
            [0, 1, 2],
            [3, 3, 4],
            "process 2 was started with --num_processes=4, process 0 with 3",
        ),
        ({2: {"seed": 2}}, [0, 1, 2], None, "process 2 was started with another seed"),
        ({}, [0, 2], None, "process 1 did not come to 127.0.0.1"),
        ({}, [1, 2], None, "no process 0 answers there"),
    ],
)
def test_processes_that_do_not_fit_are_told_so(told, ids, counts, said, monkeypatch) -> None:
    monkeypatch.setattr(launch, "MEETING", 1.5)
    assert all(said in str(end) for end in meet(told, 3, ids, counts))


def test_processes_meet_in_any_order(monkeypatch) -> None:
    monkeypatch.setattr(launch, "MEETING", 20.0)
    assert meet({}, 3, [2, 1, 0]) == [[0], [0], [1, 2]]


def test_a_killed_process_ends_the_other() -> None:
    ends = several.start(2, ["tests/dying.py", "1", "SIGKILL"], timeout=100.0)
    assert ends[1].status == -9
    assert ends[0].status == 1 and ends[0].seconds < 60.0
    assert ends[0].stderr == f"error: process 1: {DIED}\n"


def test_a_frozen_process_ends_all_and_writes_nothing_more(tmp_path: Path) -> None:
    """Process 0, which writes, is stopped; when it wakes up another attempt may have begun."""
    written = tmp_path / "written"

    def wake(processes: list[subprocess.Popen[str]]) -> None:
        assert processes[1].wait(100.0) == 1
        processes[0].send_signal(signal.SIGCONT)

    command = ["tests/dying.py", "0", "SIGSTOP", f"--output={written}", "--patience=8"]
    ends = several.start(2, command, meanwhile=wake)
    assert [e.status for e in ends] == [1, 1]
    assert ends[1].stderr.startswith("error: process 0: gave no sign of life for 4 seconds")
    assert ends[0].stderr == ends[1].stderr
    assert written.read_text() == "{}\n"


SIGNS = {"busy": (0.5, 0.5, False), "waits": (50.0, 50.0, True), "still": (45.0, 50.0, False)}


@pytest.mark.parametrize(
    "doing, blamed",
    [
        (("busy", "busy"), None),
        (("waits", "busy"), None),  # however long
        (("waits", "still"), 1),
        (("still", "waits"), 0),
        (("waits", "waits"), 0),
    ],
)
def test_the_one_that_stands_still_is_named(doing, blamed) -> None:
    signs = {
        p: (pulse.Sign(SIGNS[d][0], SIGNS[d][1], d, SIGNS[d][2]), f"at {p}")
        for p, d in enumerate(doing)
    }
    verdict = stands_still(signs, 40.0)
    if blamed is None:
        assert verdict is None
    else:
        assert verdict is not None and verdict[0] == blamed
        assert f"{doing[blamed]}, at {blamed}" in verdict[1]
    endless = {0: (pulse.Sign(0.0, 2 * pulse.LONGEST, "at work", False), "at 7"), 1: signs[1]}
    assert "nothing came of it" in stands_still(endless, 40.0)[1]


def test_work_and_waiting_are_told_apart() -> None:
    watch = pulse.Watch()
    with pulse.doing("waiting", waits=True):
        time.sleep(0.4)
        still = watch.look()
        begin = time.process_time()
        while time.process_time() < begin + 0.3:
            hash("work")
        worked = watch.look()
    assert still.waits and still.doing == "waiting" and still.idle >= 0.4
    assert worked.idle < still.idle and worked.since >= 0.7
    with pulse.doing("fetching", limit=60.0):
        time.sleep(0.2)
        assert watch.look().idle == 0.0
    pulse.beat()
    assert watch.look().idle < 0.1
    assert "test_hosts.py" in pulse.where()


def test_two_processes_do_what_one_does(tmp_path: Path, capsys) -> None:
    """Texts, answers, losses, exported weights and measured texts of four experiments."""
    together.prepare(tmp_path)
    together.main(together.Options(str(tmp_path)))
    capsys.readouterr()
    arguments = ["tests/together.py", f"--folder={tmp_path}", "--mesh=data:2"]
    ends = several.start(2, arguments)
    assert [e.status for e in ends] == [0, 0], [e.stderr[-3000:] for e in ends]
    assert "tau " in ends[0].stdout and not ends[1].stdout
    alone, both = tmp_path / "alone", tmp_path / "data2"
    for name in ("texts.jsonl", "answers.jsonl"):
        found, wanted = lines.read(both / name), lines.read(alone / name)
        assert len(found) == len(together.PROMPTS)
        for ours, theirs in zip(found, wanted, strict=True):
            assert (ours["prompt"], ours["tokens"]) == (theirs["prompt"], theirs["tokens"])
    assert trace_file.load(both / "trace.jsonl").tau == trace_file.load(alone / "trace.jsonl").tau
    found, wanted = (lines.read(p / "run" / "metrics.jsonl") for p in (both, alone))
    for name in ("loss", "heldout_loss", "measured_tau"):
        pairs = [(a[name], b[name]) for a, b in zip(found, wanted, strict=True) if name in b]
        assert len(pairs) >= 2
        np.testing.assert_allclose(*zip(*pairs, strict=True), rtol=1e-5)
    ours, theirs = (load_file(p / "export" / "medusa_lm_head.safetensors") for p in (both, alone))
    assert ours and ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        np.testing.assert_allclose(ours[name], weight, rtol=1e-4, atol=1e-6, err_msg=name)
    # Each has tokenised a block of the lines, one the text; what they swapped is gone.
    read = [
        [json.loads(p.read_text()) for p in sorted(f.glob("read-*.json"))] for f in (alone, both)
    ]
    assert read == [[[12, 1, 1]], [[6, 1, 1], [6, 0, 0]]]
    assert not list((both / "run").glob(".rows*"))
    cases = sorted(p.name for p in (alone / "measured" / "cases").iterdir())
    assert len(cases) == 2
    for case in cases:
        (one,), (two,) = (
            lines.read(p / "measured" / "cases" / case / "results.jsonl") for p in (alone, both)
        )
        assert one["tokens_sha256"] == two["tokens_sha256"]


def test_what_has_to_be_alike_is_told(tmp_path: Path) -> None:
    told = alike.program()
    assert told["version of jax"] == jax.__version__ and "XLA_FLAGS" in told
    method, config = (
        tmp_path / "mine.py",
        {"drafter": f"{tmp_path}/mine.py:Mine:4", "eval": {"n": 3}},
    )
    method.write_text("Mine = 1\n")
    fields = alike.flat(config)
    assert fields["eval.n"] == "3"
    before = alike.own_files([*fields.values(), "--import=missing.py"])
    assert list(before) == [f"content of {method}"]
    method.write_text("Mine = 2\n")
    assert alike.own_files(fields.values()) != before
    large = tmp_path / "weights.safetensors"
    large.write_bytes(bytes(6 << 20))
    first = alike.fingerprints([large, method])
    with large.open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"x")
    second = alike.fingerprints([large, method])
    assert first["mine.py"] == second["mine.py"]
    assert first[large.name] != second[large.name]


def test_a_checkpoint_that_is_written_meanwhile_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"old")
    with unchanged(tmp_path):
        (tmp_path / "notes.md").write_text("not read")
    with (
        pytest.raises(CheckpointError, match=r"model\.safetensors was changed while it was read"),
        unchanged(tmp_path),
    ):
        (tmp_path / "model.safetensors").write_bytes(b"newer")


def test_a_run_goes_on_with_the_weights_that_it_began_with(tmp_path: Path) -> None:
    target = write_tiny(tmp_path / "target")
    place = Place_(tmp_path, tmp_path / "run.json", "--workdir")
    place.claim({"seed": 1})  # of a version that did not note them
    place.claim({"seed": 1, "checkpoints": contents([str(target), None, "demo:target"])})
    place.record.unlink()
    place.claim({"seed": 1, "checkpoints": contents([str(target)])})
    place.claim({"seed": 1, "checkpoints": contents([str(target)])})
    data = bytearray((target / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (target / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="holds a run with another checkpoints"):
        place.claim({"seed": 1, "checkpoints": contents([str(target)])})


def test_a_process_whose_place_was_taken_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    with Lock(path) as lock:
        lines.append(path, {"n": 1})
        lock.path.write_text(json.dumps({"host": "other", "pid": 1, "token": "newer"}))
        for write in (
            lambda: lines.append(path, {"n": 2}),
            lambda: write_atomically(path, "whole"),
            lambda: check_allowed(path),
        ):
            with pytest.raises(Superseded, match="another process has taken this run over"):
                write()
        write_atomically(tmp_path.parent / "elsewhere", "is no concern of it")
    assert path.read_text() == '{"n": 1}\n' and lock.path.exists()


@pytest.mark.parametrize(
    "devices, asked, instead",
    [
        (8, "data:2", "data:8,model:1"),
        (8, "data:2,model:2", "data:4,model:2"),
        (8, "model:3", "data:1,model:8"),
        (6, "data:3,model:4", "data:3,model:2"),
        (8, "experts:4", "data:2,model:1,experts:4"),
        (8, "data:2,model:2,experts:4", "data:1,model:2,experts:4"),
        (6, "data:2,experts:4", "data:3,model:1,experts:2"),
        (4, "", "data:4,model:1"),
    ],
)
def test_a_mesh_that_leaves_devices_out_is_refused_with_one_that_would_do(
    devices: int, asked: str, instead: str, monkeypatch
) -> None:
    monkeypatch.setattr(hosts, "count", lambda: 2)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    with pytest.raises(ValueError, match=f"write --mesh={instead}[.]$"):
        parse_mesh(asked)
    assert math.prod(mesh_sizes(instead).values()) == devices


def test_a_script_for_one_process_says_so() -> None:

    command = [sys.executable, "-m", "experiments.report", f"--coordinator={ADDRESS}"]
    done = subprocess.run(
        [*command, "--num_processes=2", "--process_id=0"],
        cwd=several.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: experiments.report runs as one process")


def test_what_differs_of_long_values_is_shown() -> None:
    """Two command lines part in their middle."""
    flags = [f"--flag{i}={i}" for i in range(20)]
    own, first = launch._differing(flags, [*flags[:15], "--flag15=9", *flags[16:]])
    assert "flag15=15" in own and "flag15=9" in first and max(map(len, (own, first))) <= 62
    assert launch._differing(1, None) == ("1", "null")
