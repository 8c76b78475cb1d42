"""metrics.jsonl of a training run, cut back to the checkpoint that a resumed one goes on from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specjax.core import hosts
from specjax.core.files import write_atomically
from specjax.runs import lines
from specjax.train.checkpoints import SaveFailed


class MetricsLog:
    """One JSON object a line, in the order of the steps; lines past ``step`` are cut off.

    So are damaged ones, and those that stand twice; ``say`` is told of what is missing then. Of
    several processes the first one writes; on the others all of this does nothing.
    """

    def __init__(self, path: Path, step: int, say: Callable[[str], None] = print):
        """``step`` of the checkpoint; -1: none. Raises SaveFailed if it cannot be written."""
        self._path = path
        if not hosts.is_first():
            return
        try:
            kept, damaged = _records(path, step)
            write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
        except (OSError, ValueError) as error:
            raise SaveFailed(
                f"{path} cannot be written: {getattr(error, 'strerror', None) or error}. "
                "Checkpoints are whole: see to it, and run the same command again."
            ) from error
        if damaged or (step >= 0 and not any(record["step"] == 0 for record in kept)):
            say(f"{path} is damaged: records of steps before {step} are missing in it from now on")

    def write(self, record: lines.Record) -> None:
        """Raises SaveFailed if the file system does not take it."""
        if not hosts.is_first():
            return
        try:
            lines.append(self._path, record, durable=False)  # until `sync`
        except OSError as error:
            raise SaveFailed(
                f"The record of step {record['step']} could not be written to {self._path}: "
                f"{error.strerror}. Checkpoints before it are whole: make room and run the same "
                "command again."
            ) from error

    def sync(self) -> None:
        """Lines up to here are on disk; called before a checkpoint that lies past them."""
        if hosts.is_first():
            lines.sync(self._path)


def _records(path: Path, step: int) -> tuple[list[lines.Record], bool]:
    """The records of steps up to ``step`` in their order, and whether one before is damaged."""
    kept, last, damaged, damaged_before = list[lines.Record](), -1, False, False
    for record in lines.scan(path) if path.exists() else ():
        number: Any = record and record.get("step")
        if not isinstance(number, int):
            damaged = True
            continue
        damaged_before |= damaged
        if record is not None and last < number <= step:
            kept.append(record)
            last = number
    return kept, damaged_before
