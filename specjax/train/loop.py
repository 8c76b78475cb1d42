"""The training loop: checkpoints, metrics, resume.

What makes a resumed run the same run: a checkpoint holds the whole state, the position in the data
included, and appears whole or not at all; and the metrics are cut back to the checkpoint.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp

from specjax.train.lm import Sums, TrainState

Record = dict[str, Any]


class Data(Protocol):
    """Batches, and where in them a run is. An iterator of grain is one."""

    def __next__(self) -> Any:
        """The next batch, its arrays [A, B, ...] on their devices."""
        ...

    def get_state(self) -> Any:
        """The position, in JSON."""
        ...

    def set_state(self, state: Any) -> None: ...


class ByStep:
    """Batches that are a function of the step."""

    def __init__(self, batch: Callable[[int], Any]):
        self._batch, self._step = batch, 0

    def __next__(self) -> Any:
        self._step += 1
        return self._batch(self._step - 1)

    def get_state(self) -> dict[str, int]:
        return {"step": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        self._step = state["step"]


class SaveFailed(RuntimeError):
    """A checkpoint could not be written, and the ones before it are whole. One line."""


class Checkpoints:
    """The last two training states under a directory."""

    def __init__(self, directory: Path):
        # Synchronous: the state is small, and it is donated to the next step.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._directory = directory.absolute()
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, state: TrainState, data: Any) -> None:
        """Writes to a temporary directory and renames it: a kill leaves the previous ones.

        Args:
          state: what is trained.
          data: the position in the data, in JSON.

        Raises:
          SaveFailed: if the file system does not take it; nothing of it is left then.
        """
        step = int(state.step)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_as_dict(state)), data=ocp.args.JsonSave(data)
        )
        try:
            self._manager.save(step, args=items)
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as a ValueError
            self._remove_unfinished(step)
            reason = " ".join(str(error).split())
            raise SaveFailed(
                f"The checkpoint of step {step} could not be written to {self._directory}: "
                f"{reason[:300]}. Checkpoints before it are whole: make room and run the same "
                "command again."
            ) from error

    def _remove_unfinished(self, step: int) -> None:
        """Removes what a failed save left; its other writers may still be at work for a moment."""
        for _ in range(50):
            left = list(self._directory.glob(f"{step}.orbax-checkpoint-tmp*"))
            if not left:
                return
            for path in left:
                shutil.rmtree(path, ignore_errors=True)
            time.sleep(0.02)

    def restore(self, like: TrainState) -> tuple[TrainState, Any]:
        """The newest complete state, placed as ``like`` is, and its position in the data.

        ``like`` itself and None if there is none.
        """
        step = self._manager.latest_step()
        if step is None:
            return like, None
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _as_dict(like)
        )
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=items)
        return TrainState(**restored["state"]), restored["data"]

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
    step_fn: Callable[[TrainState, Any, Any], tuple[TrainState, Sums]],
    data: Data,
    *,
    steps: int,
    workdir: Path,
    target: Any = None,
    tokens_per_step: int,
    learning_rate: Callable[[int], Any],
    evaluate: Callable[[TrainState], Record],
    log_every: int,
    eval_every: int,
    checkpoint_every: int,
    report: Callable[[Record], None] = lambda record: None,
) -> TrainState:
    """Trains to ``steps``, from the newest checkpoint under ``workdir`` where there is one.

    Args:
      state: the freshly initialised state, placed on its devices.
      step_fn: from `lm.make_step`.
      data: batches for it, from the beginning.
      target: passed on to ``step_fn``.
      tokens_per_step: for the metrics.
      learning_rate: of a step, for the metrics.
      evaluate: figures of a state for the metrics.
      report: called with every record that is logged.

    Returns:
      The state after ``steps``. ``workdir/metrics.jsonl`` has a record every ``log_every`` steps:
      step, loss and the objective's other sums (over their weight, since the last one), lr,
      tokens_per_s (training alone), and every ``eval_every`` steps and at the end what
      ``evaluate`` returns.

    Raises:
      FloatingPointError: if the loss is not finite.
      SaveFailed: if a checkpoint cannot be written.
    """
    checkpoints = Checkpoints(workdir / "checkpoints")
    state, position = checkpoints.restore(state)
    if position is not None:
        data.set_state(position)
    done = int(state.step)
    log = MetricsLog(workdir / "metrics.jsonl", done)
    parts: list[Sums] = []
    began = time.perf_counter()
    try:
        for step in range(done + 1, steps + 1):
            state, sums = step_fn(state, next(data), target)
            parts.append(sums)
            last = step == steps
            if step % log_every and not last:
                continue
            means = _means(parts)
            rate = tokens_per_step * len(parts) / (time.perf_counter() - began)
            record: Record = {
                "step": step,
                **means,
                "lr": float(learning_rate(step - 1)),
                "tokens_per_s": round(rate, 1),
            }
            if not np.isfinite(record["loss"]):
                raise FloatingPointError(
                    f"step {step}: the loss is {record['loss']}; lower peak_lr."
                )
            if step % eval_every == 0 or last:
                record |= evaluate(state)
            log.write(record)
            report(record)
            if step % checkpoint_every == 0 or last:
                log.sync()
                checkpoints.save(state, data.get_state())
            parts, began = [], time.perf_counter()
    finally:
        log.close()
        checkpoints.close()
    return state


def _means(parts: list[Sums]) -> Record:
    """The loss and the other sums of some steps, each over the sum of the weights."""
    host = jax.device_get(parts)
    sums = {name: sum(float(part[name]) for part in host) for name in host[0]}
    weight = sums.pop("weight")
    return {name: total / weight if weight else float("nan") for name, total in sums.items()}


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
