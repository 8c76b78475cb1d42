"""What the training scripts share: the place of a run, its progress, and how it ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import cli
from experiments.progress import progress
from specjax.core import launch
from specjax.train import loop
from specjax.train.checkpoints import Foreign, SaveFailed
from specjax.train.config import DrafterConfig, LMConfig
from specjax.train.state import TrainState

RESUMABLE = 42  # exit status of a run that SIGTERM ended, saved: start it again


def train(
    config: LMConfig | DrafterConfig,
    state: TrainState,
    step_fn: Callable[..., Any],
    data: loop.Data,
    *,
    evaluated: str,
    board: Any,
    **rest: Any,
) -> TrainState:
    """`loop.fit` with what is shown of it; a run that ends early ends the process, in one line.

    Args:
      evaluated: a field of the records that are always printed.
      board: of TensorBoard, or None.
      rest: passed on.
    """
    schedule = loop.Schedule(
        config.steps, config.log_every, config.eval_every, config.checkpoint_every
    )
    try:
        with progress(config.steps, board, evaluated=evaluated) as report:
            return loop.fit(state, step_fn, data, schedule=schedule, report=report, say=say, **rest)
    except loop.Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr, flush=True)
        # JAX may crash when Python is torn down under a program of its own that still runs.
        launch.exit_together(130 if stopped.signum == signal.SIGINT else RESUMABLE)
    except (SaveFailed, Foreign, FloatingPointError) as error:
        cli.fail(str(error))


def newest(workdir: Path, state: TrainState) -> TrainState:
    """The state of the newest checkpoint, for --export_only."""
    with cli.one_line_errors():
        restored = loop.Checkpoints(workdir / "checkpoints", say).restore(state)
        if restored.data is None:
            raise ValueError(f"--workdir={workdir} holds no checkpoint yet; train first.")
    return restored.state


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
