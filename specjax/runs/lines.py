"""A file of JSON objects, one a line, that only grows.

A kill in the middle of a line leaves it without its end. Such a line is not there: `read` passes it
over, and `append` writes in its place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from specjax.core.files import add_line, parse_json, read_bytes

Record = dict[str, Any]


def append(path: Path, record: Mapping[str, Any], *, durable: bool = True) -> None:
    """Adds a line; where it is ``durable`` it survives a crash when this returns.

    Raises:
      OSError: naming the file, if it cannot be written.
    """
    with path.open("a+b", buffering=0) as file:
        _cut(file)
        add_line(file, json.dumps(record, ensure_ascii=False), durable=durable)


def _cut(file: FileIO) -> None:
    """Removes a last line without its end."""
    size = file.seek(0, os.SEEK_END)
    if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
        file.truncate(os.pread(file.fileno(), size, 0).rfind(b"\n") + 1)


def sync(path: Path) -> None:
    """All lines so far survive a crash from here on."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read(path: Path, otherwise: str = "delete it and the lines behind it.") -> list[Record]:
    """The lines of a file; none, if it is not there.

    Raises:
      ValueError: naming the line, if one is damaged; ``otherwise`` says what to do then.
      OSError: if it cannot be read.
    """
    records = []
    for number, record in enumerate(scan(path) if path.exists() else (), 1):
        if record is None:
            raise ValueError(f"{path}, line {number}: damaged, and not a result; {otherwise}")
        records.append(record)
    return records


def scan(path: Path) -> Iterator[Record | None]:
    """The lines of a file in their order; None for one that is no JSON object. Raises OSError."""
    for line in read_bytes(path).split(b"\n")[:-1]:
        try:
            record = parse_json(line, "line")
        except ValueError:
            record = None
        yield record if isinstance(record, dict) else None
