"""Runs of experiments.benchmark on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_checkpoint import write_tiny

from configs.benchmark import get_config
from specjax.lab.bench import job, measure
from specjax.lab.bench.store import Store

PROMPTS = [
    {"prompt": "def area(", "category": "def"},
    {"prompt": "x = 1\n", "category": "other"},
    {"prompt": "def naïve(é):", "category": "def"},
]


def make_place(path: Path) -> Path:
    """A target, a draft that often agrees with it, and prompts."""
    write_tiny(path / "target")
    write_tiny(path / "draft", noise=0.05)
    lines = [json.dumps(p) + "\n" for p in PROMPTS]
    (path / "prompts.jsonl").write_text("".join(lines))
    return path


def config_of(place: Path, **changes: Any) -> dict[str, Any]:
    config = get_config().to_dict() | {
        "target": str(place / "target"),
        "drafters": (f"{place / 'draft'}:3", "ngram:3"),
        "prompt_sets": (f"jsonl:{place / 'prompts.jsonl'}",),
        "num_prompts": 0,
        "temperatures": (0.0, 1.0),
        "batches": (2,),
        "rows": ("lockstep",),
        "max_new_tokens": 12,
        "repeats": 2,
    }
    assert not changes.keys() - config.keys()
    return config | changes


def run(config: dict[str, Any], path: Path, report: Any = lambda *_: None) -> job.Job:
    """The measurement, without what is made of it."""
    store = Store(path)
    prepared = job.prepare(config, store)
    store.begin(prepared.run, prepared.prompts)
    measure.measure(prepared, store, report)
    return prepared


def read(path: Path) -> Any:
    return json.loads(path.read_text())
