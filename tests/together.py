"""Generates, answers prompts, trains and measures, alone or as one of several processes.

python tests/together.py --folder=FOLDER --mesh=data:2 --coordinator=... --num_processes=2 ...
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from specjax.cli.script import Script
from specjax.core.options import option

PROMPTS = ["def area(", "class Stack:\n", "import os", "for i in range(", "def main():\n    "]
ROWS = [{"tokens": [20 + i, 6, 7, 5 + i % 3] * 6, "prompt_tokens": 9} for i in range(12)]
TEXT = "".join(f"def f{i % 7}(x):\n    return x + {i % 7}\n\n\n" for i in range(60))


@dataclasses.dataclass(frozen=True)
class Options:
    folder: str = option(help="Where target/ and prompts.jsonl are.")
    mesh: str = option("", "Of all devices.")


def prepare(folder: Path) -> None:
    """What is read."""
    from tiny_checkpoint import write_tiny

    write_tiny(folder / "target")
    write_tiny(folder / "draft", noise=0.05)
    asked = "".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS)
    (folder / "prompts.jsonl").write_text(asked)
    (folder / "text.txt").write_text(TEXT)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def main(options: Options) -> None:
    """Everything, into a folder of its own."""
    from specjax import jobs

    folder, mesh = Path(options.folder), options.mesh
    into = folder / (mesh.replace(":", "") or "alone")
    into.mkdir(exist_ok=True)
    target, asked = str(folder / "target"), str(folder / "prompts.jsonl")
    jobs.generate(
        target=target,
        drafter=f"lm:{folder}/draft:3",
        mesh=mesh,
        prompt_file=asked,
        output=into / "texts.jsonl",
        trace=into / "trace.jsonl",
        max_new_tokens=16,
        batch_size=4,
        stop=("return",),
        temperature=0.7,
        compare_plain=False,
        compilation_cache="",
    )
    jobs.regenerate(
        target=target,
        prompts=asked,
        mesh=mesh,
        output=into / "answers.jsonl",
        max_new_tokens=16,
        batch=4,
        temperature=0.7,
    )
    data = (str(folder / "text.txt"), str(folder / "rows.jsonl"))
    config: dict[str, object] = {
        "kind": "medusa",
        "target": target,
        "num_draft": 2,
        "mesh": mesh,
        "data": {"train": data, "heldout": (), "seq_len": 32},
        "eval": {"rows": 4, "prompts": 2, "prompt_tokens": 8, "max_new_tokens": 8},
        "objective": {"chunk": 32},
        "steps": 3,
        "rows": 4,
        "warmup_steps": 1,
        "log_every": 1,
        "eval_every": 3,
        "checkpoint_every": 3,
        "compute_dtype": "float32",
    }
    train(config, into)
    measured = {
        "target": target,
        "mesh": mesh,
        "drafters": (f"{folder}/draft:3",),
        "prompt_sets": (f"jsonl:{asked}",),
        "num_prompts": 2,
        "temperatures": (0.0,),
        "batches": (2,),
        "max_new_tokens": 8,
        "repeats": 1,
        "calibrate": 0,
        "compilation_cache": "",
    }
    jobs.benchmark(config=measured, workdir=into / "measured")


def train(config: dict[str, object], into: Path) -> None:
    """Trains, and counts the lines and documents that this process tokenises."""
    from specjax.core import hosts
    from specjax.jobs import drafter_training
    from specjax.train.data import jsonl
    from specjax.train.data.text import Speech

    own = into / f"read-{hosts.process()}"  # finds no tokens of an earlier run
    with (
        mock.patch.object(drafter_training, "default_cache", lambda: own),
        mock.patch.object(jsonl, "token_row", wraps=jsonl.token_row) as lines,
        mock.patch.object(Speech, "document", autospec=True, side_effect=Speech.document) as texts,
    ):
        drafter_training.train_drafter(
            config=config, workdir=into / "run", export_dir=into / "export"
        )
    kept = len(list(own.glob("*.tokens")))
    counts = [lines.call_count, texts.call_count, kept]
    own.with_suffix(".json").write_text(json.dumps(counts))


if __name__ == "__main__":
    Script("together", None, Options, main, several=True, survives_sigterm=True)()
