"""Shows that exported drafters mean to other people's code what they mean here.

Drafters are exported in each of their formats, loaded by the code that the format comes from
(packages dflash, speculators, specforge; PyTorch on CPU) and compared with this project in float32:
hidden states, logits, guesses, the whole text of the reference's own decoding loop with the number
of tokens of each of its cycles, and the losses of the reference's own trainer over its first
updates, from the same weights, on the same text, with the same anchors.

Without flags: fresh drafters of a small random target, about two minutes on 2 CPU cores. Expected:
every line PASS and exit status 0.

  pip install -e '.[parity]'
  python -m experiments.reference_parity
  python -m experiments.reference_parity --target=TARGET_DIR --drafter=DRAFTER_DIR
  python -m experiments.reference_parity --python=/path/to/the/reference/environment/bin/python

Exit status 1: a difference above its tolerance. 2: nothing was compared, or bad input.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

import specjax
from experiments import cli
from experiments.benchmarking import reference_checks as checks
from specjax.checkpoint.drafters.export import formats_of, save_drafter
from specjax.checkpoint.export import save_pretrained
from specjax.checkpoint.parity import Comparison
from specjax.drafters.dflash import DFlash
from specjax.drafters.dflash2 import DFlash2
from specjax.drafters.eagle3 import Eagle3
from specjax.train.lm import build

_TARGET = flags.DEFINE_string("target", None, "A Hugging Face directory; default: a random one.")
_DRAFTER = flags.DEFINE_multi_string("drafter", [], "Directories of drafters for --target.")
_PYTHON = flags.DEFINE_string(
    "python", sys.executable, "The Python that has the reference packages."
)
_STEPS = flags.DEFINE_integer("steps", 3, "Updates of the trainers.", 1)
WORKER = Path(__file__).parent / "benchmarking" / "reference_drafters.py"
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


def main(argv: Sequence[str]) -> None:
    del argv
    with cli.one_line_errors():
        if bool(_DRAFTER.value) != (_TARGET.value is not None):
            raise ValueError("--drafter and --target are given together.")
        if not Path(_PYTHON.value).exists():
            raise ValueError(f"--python={_PYTHON.value}: no such file.")
    jax.config.update("jax_default_matmul_precision", "highest")
    with tempfile.TemporaryDirectory() as scratch:
        if _TARGET.value is None:
            directory = write_target(Path(scratch) / "target")
            target = specjax.load(directory, dtype="float32")
            drafters = fresh_drafters(target)
        else:
            with cli.one_line_errors():
                directory = Path(_TARGET.value).resolve()
                target = specjax.load(directory, dtype="float32")
                drafters = {
                    Path(path).name: specjax.load_drafter(path, target, dtype="float32")
                    for path in _DRAFTER.value
                }
        rows, missing = compare(
            drafters, target, directory, Path(scratch), python=_PYTHON.value, steps=_STEPS.value
        )
    width = max([len(row.name) for row in rows], default=0)
    for row in rows:
        result = "PASS" if row.passed else "FAIL"
        print(f"{row.name:<{width}}  {row.difference:>8.1e}  {row.tolerance:>8.0e}  {result}")
    for package in sorted(missing):
        print(f"package {package} is not installed for {_PYTHON.value}: its checks were left out.")
    if not rows:
        cli.fail("nothing was compared; install the extra: pip install -e '.[parity]'")
    failed = [row.name for row in rows if not row.passed]
    print(f"{len(rows) - len(failed)} of {len(rows)} within tolerance.")
    sys.exit(1 if failed else 0)


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
        "dflash sliding from the anchor": DFlash.fresh(
            target, num_draft=5, seed=2, window=9, window_from_anchor=True, **sizes
        ),
        "dflash2": DFlash2.fresh(target, num_draft=5, seed=3, **sizes),
        "eagle3": Eagle3.fresh(target, num_draft=3, seed=4),
        "eagle3 reduced": Eagle3.fresh(target, num_draft=3, seed=5, target_ids=half),
    }


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
                planned[f"{name}, {check.job['task']}"] = check
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


if __name__ == "__main__":
    app.run(main)
