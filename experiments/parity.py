"""Compares a checkpoint, as loaded here, with golden outputs of its reference implementation.

Expected: every line PASS and exit status 0, in a few seconds on a CPU.

  python -m experiments.parity --checkpoint=../shared/parity/llama3
  python -m experiments.parity --checkpoint=../shared/weights/stories260K/stories260K.bin

Exit status 1: a difference above its tolerance. 2: nothing was compared, or bad input.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from specjax.checkpoint import CheckpointError, load
from specjax.checkpoint.parity import Comparison, Tolerances, compare_story, compare_target

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A Hugging Face directory or a llama2.c .bin file.", required=True
)
_GOLDEN = flags.DEFINE_string(
    "golden", None, "Default: golden.npz or golden_greedy.json beside the checkpoint."
)
_TARGET = flags.DEFINE_string("target", None, "The target of a drafter checkpoint.")
_LOGITS_TOL = flags.DEFINE_float("logits_tol", 2e-4, "Largest difference of logits.", 0.0)
_HIDDEN_TOL = flags.DEFINE_float("hidden_tol", 1e-4, "Largest difference of hidden states.", 0.0)
_STATE_TOL = flags.DEFINE_float(
    "state_tol", 1e-5, "Largest difference of cached state, relative to values above 1.", 0.0
)


def main(argv: Sequence[str]) -> None:
    try:
        if argv[1:]:
            raise CheckpointError(f"unexpected arguments: {' '.join(argv[1:])}")
        if _TARGET.value is not None:
            raise CheckpointError("--target: drafter checkpoints are not supported yet; omit it.")
        rows = compare()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(table(rows))
    compared = [row for row in rows if row.passed is not None]
    if not compared:
        print("error: nothing was compared.", file=sys.stderr)
        sys.exit(2)
    failed = [row.name for row in compared if not row.passed]
    print(f"{len(compared) - len(failed)} of {len(compared)} within tolerance.")
    sys.exit(1 if failed else 0)


def compare() -> list[Comparison]:
    """What the flags ask for."""
    checkpoint = Path(_CHECKPOINT.value)
    beside = checkpoint / "golden.npz"
    if checkpoint.is_file():
        beside = checkpoint.parent / "golden_greedy.json"
    golden_path = Path(_GOLDEN.value) if _GOLDEN.value else beside
    tolerances = Tolerances(_LOGITS_TOL.value, _HIDDEN_TOL.value, _STATE_TOL.value)
    jax.config.update("jax_default_matmul_precision", "highest")
    golden = read_golden(golden_path) if checkpoint.exists() else {}
    model = load(_CHECKPOINT.value, dtype="float32")  # says so if the checkpoint does not exist
    story = golden_path.suffix == ".json"
    return (compare_story if story else compare_target)(model, golden, tolerances)


def read_golden(path: Path) -> dict[str, Any]:
    """The arrays of an .npz file, or the fields of a .json file."""
    try:
        if path.suffix == ".json":
            return dict(json.loads(path.read_bytes()))
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such golden file; name it with --golden.") from None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a golden file: {error}") from None


def table(rows: Sequence[Comparison]) -> str:
    """The comparisons as aligned text."""
    width = max([len("array"), *(len(row.name) for row in rows)])
    lines = [f"{'array':<{width}}  {'difference':>10}  {'tolerance':>9}  result"]
    for row in rows:
        result = {True: "PASS", False: "FAIL", None: "not compared"}[row.passed]
        difference = "-" if row.difference is None else f"{row.difference:.2e}"
        note = f"  ({row.note})" if row.note else ""
        lines.append(
            f"{row.name:<{width}}  {difference:>10}  {row.tolerance:>9.1e}  {result}{note}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
