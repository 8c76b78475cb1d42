"""What several processes write and train, on every kind of mesh, is what one does.

    python -m pytest -n 0 tests/long/test_several.py

Not part of the suite: on two cores this takes about 20 minutes.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import several

PROMPTS = ["def area(", "class Stack:\n", "import os", "for i in range(", "def main():\n    "]
# Processes, devices of each, mesh.
MESHES = [
    (2, 1, "model:2"),
    (2, 1, "data:2"),
    (2, 2, "data:2,model:2"),
    (4, 1, "data:2,model:2"),
]


def run(num: int, devices: int, arguments: list[str], **more: Any) -> list[several.End]:
    """One process without the flags of several, or several."""
    if num > 1:
        return several.start(num, arguments, devices=devices, **more)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=several.ROOT, capture_output=True, text=True
    )
    return [several.End(done.returncode, done.stdout, done.stderr, 0.0)]


def generate(folder: Path, mesh: str, *more: str) -> list[str]:
    asked = folder / "prompts.txt"
    asked.write_text("".join(p.split("\n")[0] + "\n" for p in PROMPTS))
    name = mesh.replace(":", "").replace(",", "") or "alone"
    return [
        *("-m", "experiments.generate", f"--prompt_file={asked}", f"--mesh={mesh}"),
        *("--dtype=float32", "--max_new_tokens=40", "--config.compare_plain=False"),
        *("--config.batch_size=2", f"--output={folder}/{name}.jsonl", *more),
    ]


@pytest.mark.parametrize("drafter", ["eagle3", "lm", "ngram"])
def test_texts_are_those_of_one_process(drafter: str, tmp_path: Path) -> None:
    texts = {}
    for num, devices, mesh in [(1, 1, ""), *MESHES]:
        more = [f"--drafter={drafter}", "--temperature=0.7", "--config.details"]
        ends = run(num, devices, generate(tmp_path, mesh, *more))
        assert {e.status for e in ends} == {0}, [e.stderr[-2000:] for e in ends]
        file = tmp_path / f"{mesh.replace(':', '').replace(',', '') or 'alone'}.jsonl"
        records = [json.loads(line) for line in file.read_text().splitlines()]
        texts[num, devices, mesh] = [(r["prompt"], r["tokens"]) for r in records]
        file.unlink()
        file.with_name(file.name + ".settings.json").unlink()
    first, *others = texts.values()
    assert len(first) == len(PROMPTS) and all(text == first for text in others)


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_kill_ends_all_and_the_output_goes_on(victim: int, tmp_path: Path) -> None:
    output = tmp_path / "data3.jsonl"

    def kill(processes: list[Any]) -> None:
        while not output.exists() or not output.read_bytes():
            assert all(p.poll() is None for p in processes)
            time.sleep(0.1)
        processes[victim].send_signal(signal.SIGKILL)

    arguments = generate(tmp_path, "data:3", "--drafter=dflash")
    ends = several.start(3, arguments, meanwhile=kill)
    assert ends[victim].status == -9
    for i, end in enumerate(ends):
        if i != victim:
            assert end.status not in (0, -9) and end.seconds < 60
            assert f"process {victim}: died" in end.stderr or "another task died" in end.stderr
    again = several.start(3, arguments)
    assert {e.status for e in again} == {0}, [e.stderr[-2000:] for e in again]
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [r["prompt"] for r in records] == [p.split("\n")[0] for p in PROMPTS]


def train(folder: Path, workdir: str, mesh: str, *more: str) -> list[str]:
    text = (several.ROOT / "specjax/decode.py").read_text()
    (folder / "train.txt").write_text(text)
    (folder / "heldout.txt").write_text((several.ROOT / "specjax/sampling.py").read_text())
    sizes = {
        **{"data.seq_len": 64, "sizes.layers": 1, "objective.anchors": 8, "objective.chunk": 4},
        **{"eval.rows": 4, "eval.prompts": 2, "eval.prompt_tokens": 16, "eval.max_new_tokens": 16},
        **{"steps": 4, "log_every": 1, "eval_every": 4, "checkpoint_every": 100},
        **{"warmup_steps": 1, "compute_dtype": "float32", "mesh": mesh},
        "data.train": f"('{folder}/train.txt',)",
        "data.heldout": f"('{folder}/heldout.txt',)",
    }
    return [
        *("-m", "experiments.train_drafter", "--config=configs/train_dflash.py"),
        f"--workdir={folder}/{workdir}",
        *(f"--config.{name}={value}" for name, value in sizes.items()),
        *more,
    ]


def losses(workdir: Path) -> list[float]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines[1:]]


def test_training_has_the_losses_of_one_process_and_goes_on_with_another_number(
    tmp_path: Path,
) -> None:
    found = {}
    for num, devices, mesh in [(1, 1, ""), *MESHES]:
        name = f"{num}-{mesh.replace(':', '').replace(',', '')}"
        export = f"--export_dir={tmp_path}/{name}-export"
        ends = run(num, devices, train(tmp_path, name, mesh, export))
        assert {e.status for e in ends} == {0}, [e.stderr[-2000:] for e in ends]
        found[name] = losses(tmp_path / name)
        assert (tmp_path / f"{name}-export" / "config.json").is_file()
    expected = found["1-"]
    assert len(expected) == 4 and expected[3] != expected[0]
    for name, curve in found.items():
        np.testing.assert_allclose(curve, expected, rtol=1e-5, err_msg=name)

    def stop(processes: list[Any]) -> None:
        while not (tmp_path / "stopped" / "greedy.json").exists():  # steps are about to begin
            assert all(p.poll() is None for p in processes)
            time.sleep(0.02)
        processes[1].send_signal(signal.SIGTERM)  # one is told, all stop

    for num, mesh in [(4, "data:4"), (1, ""), (2, "data:2")]:
        arguments = train(tmp_path, "stopped", mesh, "--config.eval_every=400")
        if num == 4:
            ends = several.start(num, arguments, meanwhile=stop)
            assert {e.status for e in ends} == {42}, [e.stderr[-2000:] for e in ends]
            assert "of 4 is saved" in ends[0].stderr
        else:
            ends = run(num, 1, arguments)
            assert {e.status for e in ends} == {0}, [e.stderr[-2000:] for e in ends]
        if num == 1:
            np.testing.assert_allclose(losses(tmp_path / "stopped"), expected, rtol=1e-5)
    assert "it is finished" in ends[0].stderr
