"""The training loop: checkpoints, metrics, resume.

What makes a resumed run the same run: a batch is a function of the step, a checkpoint holds all
other state and appears whole or not at all, and the metrics are cut back to the checkpoint.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from specjax.core.types import Array
from specjax.train.lm import TrainState

Record = dict[str, Any]


class Checkpoints:
    """The last two training states under a directory."""

    def __init__(self, directory: Path):
        # Synchronous: the state is small, and it is donated to the next step.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def save(self, state: TrainState) -> None:
        """Writes to a temporary directory and renames it: a kill leaves the previous ones."""
        self._manager.save(int(state.step), args=ocp.args.StandardSave(_as_dict(state)))

    def restore(self, like: TrainState) -> TrainState:
        """The newest complete state, placed as ``like`` is; ``like`` itself if there is none."""
        step = self._manager.latest_step()
        if step is None:
            return like
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _as_dict(like)
        )
        return TrainState(
            **self._manager.restore(step, args=ocp.args.StandardRestore(abstract)),
        )

    def close(self) -> None:
        self._manager.close()


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}


class MetricsLog:
    """One JSON object a line, in the order of the steps; lines past ``step`` are cut off."""

    def __init__(self, path: Path, step: int):
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:  # a kill in the middle of a line
                    break
                if record["step"] <= step:
                    kept.append(line + "\n")
        whole = path.with_suffix(".tmp")
        whole.write_text("".join(kept))
        os.replace(whole, path)
        self._file = path.open("a")

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Lines up to here are on disk; called before a checkpoint that lies past them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def fit(
    state: TrainState,
    step_fn: Callable[[TrainState, Array, Any], tuple[TrainState, Array]],
    batch: Callable[[int], Array],
    *,
    steps: int,
    workdir: Path,
    teacher: Any = None,
    learning_rate: Callable[[int], Any],
    evaluate: Callable[[TrainState], float],
    log_every: int,
    eval_every: int,
    checkpoint_every: int,
    report: Callable[[Record], None] = lambda record: None,
) -> TrainState:
    """Trains to ``steps``, from the newest checkpoint under ``workdir`` where there is one.

    Args:
      state: the freshly initialised state, placed on its devices.
      step_fn: from `lm.make_step`.
      batch: the tokens [A, B, T + 1] of a step.
      teacher: passed on to ``step_fn``.
      learning_rate: of a step, for the metrics.
      evaluate: the held-out loss of a state.
      report: called with every record that is logged.

    Returns:
      The state after ``steps``. ``workdir/metrics.jsonl`` has a record every ``log_every`` steps:
      step, loss (mean since the last one), lr, tokens_per_s (training alone), and every
      ``eval_every`` steps and at the end heldout_loss.
    """
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = checkpoints.restore(state)
    done = int(state.step)
    log = MetricsLog(workdir / "metrics.jsonl", done)
    losses: list[Array] = []
    began, tokens = time.perf_counter(), 0
    for step in range(done + 1, steps + 1):
        data = batch(step - 1)
        state, loss = step_fn(state, data, teacher)
        losses.append(loss)
        tokens += data.shape[0] * data.shape[1] * (data.shape[2] - 1)
        last = step == steps
        if step % log_every and not last:
            continue
        record: Record = {
            "step": step,
            "loss": float(np.mean([float(x) for x in losses])),
            "lr": float(learning_rate(step - 1)),
        }
        record["tokens_per_s"] = round(tokens / (time.perf_counter() - began), 1)
        if step % eval_every == 0 or last:
            record["heldout_loss"] = evaluate(state)
        if not np.isfinite(record["loss"]):
            raise FloatingPointError(f"step {step}: the loss is {record['loss']}; lower peak_lr.")
        log.write(record)
        report(record)
        if step % checkpoint_every == 0 or last:
            log.sync()
            checkpoints.save(state)
        losses, began, tokens = [], time.perf_counter(), 0
    log.close()
    checkpoints.close()
    return state


def claim(workdir: Path, identity: Record) -> None:
    """Makes ``workdir`` this run's, or checks that it already is.

    Args:
      identity: what must not change between a run and its resumption.

    Raises:
      ValueError: if the directory holds another run.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "run.json"
    identity = json.loads(json.dumps(identity))
    if not path.exists():
        path.with_suffix(".tmp").write_text(json.dumps(identity, indent=1) + "\n")
        os.replace(path.with_suffix(".tmp"), path)
        return
    before = json.loads(path.read_text())
    changed = [k for k in sorted({*before, *identity}) if before.get(k) != identity.get(k)]
    if changed:
        raise ValueError(
            f"--workdir={workdir} holds a run with another {', '.join(changed)}; "
            "use a new directory, or the settings in its run.json."
        )


def keep_freed_memory() -> None:
    """Tells glibc to reuse the buffers of a step instead of returning them to the system.

    XLA's CPU client allocates every step's buffers anew, and touching fresh pages can take longer
    than the arithmetic. Does nothing with another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
    mallopt(mmap_max, 0)
    mallopt(arena_max, 1)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 1 << 28)
