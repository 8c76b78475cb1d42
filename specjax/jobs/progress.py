"""What a training run shows: a bar on a terminal, lines elsewhere, TensorBoard if asked for."""

from __future__ import annotations

import contextlib
import numbers
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from specjax.train.loop import Record

_FIRST = (
    "step",
    "loss",
    "tokens_per_s",
    "texts_per_s",
    "lr",
)  # what a line says in words of its own


def tensorboard(workdir: Path) -> Any:
    """A writer of events under ``workdir``.

    Raises:
      ValueError: if the package for it is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ValueError("--config.tensorboard: pip install tensorboardX first.") from error
    return SummaryWriter(str(workdir / "tensorboard"))


@contextlib.contextmanager
def progress(steps: int, board: Any, *, evaluated: str) -> Iterator[Callable[[Record], None]]:
    """What it yields takes a record; those that have the field ``evaluated`` are always printed."""
    from rich import console, progress

    columns = (
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[note]}"),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    out, clock = console.Console(), Clock(steps)
    with progress.Progress(*columns, console=out, disable=not out.is_terminal) as bar:
        task = bar.add_task("train", total=steps, note="")

        def report(record: Record) -> None:
            bar.update(task, completed=record["step"], note=brief(record))
            left = clock.left(record["step"])
            if not out.is_terminal or evaluated in record:
                print(line(record, steps, left), flush=True)
            if board is not None:
                for name, value in record.items():
                    if isinstance(value, numbers.Real):
                        board.add_scalar(name, float(value), record["step"])

        yield report
    if board is not None:
        board.close()


class Clock:
    """How long the rest takes, from the steps that this process has run."""

    def __init__(self, steps: int):
        self._steps = steps
        self._first: tuple[int, float] | None = None  # a step, and when it was reported

    def left(self, step: int) -> str | None:
        """The time left behind ``step``, such as ``1:02:03``; None before any step was timed."""
        now = time.perf_counter()
        if step == 0:  # what comes next is compiling
            return None
        if self._first is None:
            self._first = step, now
        began, when = self._first
        if step == began or step == self._steps:
            return None
        seconds = round((now - when) / (step - began) * (self._steps - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def brief(record: Record) -> str:
    """The loss and the speed."""
    if "loss" not in record:  # of step 0
        return ""
    speed = f"  {record['tokens_per_s']:.0f} tokens/s" if "tokens_per_s" in record else ""
    return f"loss {record['loss']:.3f}{speed}"


def line(record: Record, steps: int, left: str | None) -> str:
    """A record in one short line; metrics.jsonl has all digits."""
    parts = [f"step {record['step']}/{steps}", brief(record)]
    parts += [f"{name} {shown(v)}" for name, v in record.items() if name not in _FIRST]
    if left is not None:
        parts.append(f"{left} left")
    return "  ".join(part for part in parts if part)


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
