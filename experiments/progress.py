"""What a training run shows: a bar on a terminal, lines elsewhere, TensorBoard if asked for."""

from __future__ import annotations

import contextlib
import json
import numbers
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from specjax.train.loop import Record


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
    out = console.Console()
    with progress.Progress(*columns, console=out, disable=not out.is_terminal) as bar:
        task = bar.add_task("train", total=steps, note="")

        def report(record: Record) -> None:
            note = f"loss {record['loss']:.3f}  {record['tokens_per_s']:.0f} tokens/s"
            bar.update(task, completed=record["step"], note=note)
            if not out.is_terminal or evaluated in record:
                print(json.dumps(record), flush=True)
            if board is not None:
                for name, value in record.items():
                    if isinstance(value, numbers.Real):
                        board.add_scalar(name, float(value), record["step"])

        yield report
    if board is not None:
        board.close()
