"""Training runs as processes: started, stopped, damaged, and compared with an undisturbed one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from tiny_checkpoint import write_tiny

from specjax.train.corpus import HELDOUT, make_manifest

ROOT = Path(__file__).resolve().parents[2]
STEPS = 24
_TEXT = "".join(f"def f{i % 7}(x):\n    return x + {i % 7}\n\n\n" for i in range(400))
_MODEL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
_COMMON = {
    "steps": STEPS,
    "warmup_steps": 2,
    "log_every": 2,
    "eval_every": 6,
    "checkpoint_every": 1,
    "rows": 2,
    "optimizer": "adamw",
}


class Place:
    """What the runs of one script read, and their command."""

    def __init__(self, script: str, root: Path):
        self.script = script
        if script == "train_lm":
            made = make_manifest()
            train = {n: made["train"][n] for n in ("abc.py", "cmd.py", "copy.py", "enum.py")}
            heldout = {n: made["heldout"][n] for n in HELDOUT[1:2]}
            made |= {"train": train, "heldout": heldout}
            (root / "manifest.json").write_text(json.dumps(made))
            self.config = "configs/train_lm.py:target"
            self.settings: dict[str, Any] = {f"model.{k}": v for k, v in _MODEL.items()} | {
                "corpus.manifest": root / "manifest.json",
                "seq_len": 32,
            }
        else:
            write_tiny(root / "target")
            (root / "text.txt").write_text(_TEXT)
            self.config = "configs/train_medusa.py"
            self.settings = {
                "target": root / "target",
                "num_draft": 2,
                "data.train": f"('{root / 'text.txt'}',)",
                "data.seq_len": 32,
                "eval.rows": 4,
                "eval.prompts": 2,
                "eval.prompt_tokens": 8,
                "eval.max_new_tokens": 8,
                "eval.tolerance": 1.0,
                "objective.chunk": 32,
            }
        self.settings |= _COMMON

    def start(self, workdir: Path, *more: str, **changes: Any) -> subprocess.Popen[str]:
        """A process; its output is read by `finish`."""
        settings = {**self.settings, **changes}
        command = [
            *(sys.executable, "-m", f"experiments.{self.script}", f"--config={self.config}"),
            *(f"--config.{name}={value}" for name, value in settings.items()),
            *(f"--workdir={workdir}", f"--export_dir={workdir}-export", *more),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def train(self, workdir: Path, *more: str, **changes: Any) -> tuple[int, str, str]:
        return finish(self.start(workdir, *more, **changes))


def finish(process: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a process that ends by itself."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        raise
    return process.returncode, out, err


def result(workdir: Path) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The records of a finished run without their speeds, and the exported weights."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    for record in records:
        for rate in ("tokens_per_s", "texts_per_s"):
            record.pop(rate, None)
    (weights,) = Path(f"{workdir}-export").glob("*.safetensors")
    return records, load_file(weights)


def same(workdir: Path, straight: Path) -> None:
    """Checks that two runs ended alike, to the bit."""
    (records, weights), (expected, wanted) = result(workdir), result(straight)
    assert [r["step"] for r in records] == [r["step"] for r in expected]
    assert records == expected
    assert weights.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)


def digest(directory: Path) -> dict[str, str]:
    """Every file below a directory and its hash."""
    return {
        p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    }
