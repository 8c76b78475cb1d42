"""Exports drafters, has the reference code run them in a process of its own, and compares."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import reference_checks as checks

import specjax
from specjax.checkpoint.drafters.export import formats_of, save_drafter
from specjax.checkpoint.export import save_pretrained
from specjax.checkpoint.parity import Comparison
from specjax.drafters.dflash import DFlash, DFlash2
from specjax.drafters.eagle3 import Eagle3
from specjax.models import Frozen
from specjax.train.next_token import build

WORKER = Path(__file__).parent / "reference_drafters.py"
TINY = {
    "model_type": "qwen3",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
}


def write_target(directory: Path) -> Path:
    """A random target whose greedy text varies."""
    skeleton, params = build(TINY, 0)
    for name, value in params.items():
        if value.ndim == 2:
            gain = 4.0 if "lm_head" in name else 30.0 if "embed" in name else 2.0
            params[name] = value * gain
    save_pretrained(skeleton.module(params), directory, dtype="float32")
    return directory


def fresh_drafters(target: specjax.Model) -> dict[str, Any]:
    """One of each variant that a format can say."""
    half = np.sort(np.random.default_rng(0).permutation(target.config.vocab_size)[:64])
    sizes: dict[str, Any] = {"layers": 2, "num_taps": 3}
    return {
        "dflash": DFlash.fresh(target, num_draft=5, **sizes),
        "dflash sliding": DFlash.fresh(target, num_draft=5, seed=1, window=9, **sizes),
        "dflash causal": causal(DFlash.fresh(target, num_draft=5, seed=6, window=9, **sizes)),
        "dflash sliding from the anchor": DFlash.fresh(
            target, num_draft=5, seed=2, window=9, window_from_anchor=True, **sizes
        ),
        "dflash2": DFlash2.fresh(target, num_draft=5, seed=3, **sizes),
        "eagle3": Eagle3.fresh(target, num_draft=3, seed=4),
        "eagle3 reduced": Eagle3.fresh(target, num_draft=3, seed=5, target_ids=half),
    }


def causal(spec: DFlash) -> DFlash:
    """The drafter with all layers causal inside the block."""
    net, config = spec.net.module, spec.net.config
    net.config = dataclasses.replace(config, causal=(True,) * len(config.causal))
    return dataclasses.replace(spec, net=Frozen.of(net))


def compare(
    drafters: dict[str, Any],
    target: specjax.Model,
    directory: Path,
    scratch: Path,
    *,
    python: str,
    steps: int,
) -> tuple[list[Comparison], set[str]]:
    """Exports, runs the reference and compares.

    Args:
      drafters: specs by name, of float32 weights.
      target: what they draft for, loaded from ``directory``.
      directory: its Hugging Face checkpoint.
      scratch: an empty folder.
      python: the interpreter that has the reference packages.
      steps: updates of the trainers.

    Returns:
      The comparisons, and the packages that the interpreter lacks.
    """
    text = checks.Text.written_by(target)
    planned: dict[str, checks.Check] = {}
    for name, spec in drafters.items():
        for format in formats_of(spec):
            where = scratch / f"{name}-{format}".replace(" ", "-")
            try:
                save_drafter(spec, where, format=format, target=target, verifier=str(directory))
            except ValueError:  # this variant cannot be said in this format
                continue
            for check in checks.of(spec, format, target, text, steps):
                check.job |= {"directory": str(where), "target": str(directory)}
                planned[f"{name}, {check.job['task']} {check.label}".rstrip()] = check
    job, output = scratch / "job.json", scratch / "output.npz"
    job.write_text(json.dumps([{**c.job, "name": name} for name, c in planned.items()]))
    worker = subprocess.run(
        [python, str(WORKER), str(job), str(output)], capture_output=True, text=True
    )
    if worker.returncode:
        last = worker.stderr.strip().splitlines()[-1:] or ["no message"]
        if "ModuleNotFoundError" in last[0]:
            return [], {last[0].split("'")[1]}
        raise RuntimeError(f"the reference failed:\n{worker.stderr}")
    rows, missing = [], set()
    with np.load(output) as arrays:
        for name, check in planned.items():
            got = {k.split("/", 1)[1]: v for k, v in arrays.items() if k.startswith(f"{name}/")}
            if "missing" in got:
                missing.add(str(got["missing"]))
                continue
            for what, (difference, tolerance) in check.compare(got).items():
                rows.append(Comparison(f"{name}: {what}", difference, tolerance))
    return rows, missing
