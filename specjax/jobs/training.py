"""What training runs share: their options, their progress, and how they end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specjax.jobs.progress import progress
from specjax.train import loop
from specjax.train.config import DrafterConfig, LMConfig
from specjax.train.state import TrainState


class NotDone(ValueError):
    """Why a run's result could not be read or written, in one line; what was trained is kept."""


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
    """`loop.fit` with what is shown of it; raises what that raises.

    Args:
      evaluated: a field of the records that are always printed.
      board: of TensorBoard, or None.
      rest: passed on.
    """
    schedule = loop.Schedule(
        config.steps, config.log_every, config.eval_every, config.checkpoint_every
    )
    with progress(config.steps, board, evaluated=evaluated) as report:
        return loop.fit(state, step_fn, data, schedule=schedule, report=report, say=say, **rest)


def newest(workdir: Path, state: TrainState) -> TrainState:
    """The state of the newest checkpoint. Raises NotDone if there is none that can be read."""
    try:
        restored = loop.Checkpoints(workdir / "checkpoints", say).restore(state)
    except (OSError, ValueError) as error:
        raise NotDone(str(error)) from None
    if restored.data is None:
        raise NotDone(f"--workdir={workdir} holds no checkpoint yet; train first.")
    return restored.state


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
