"""Files of JSON lines: each line's object and place, and what is done about a line without one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from specjax.core import pulse
from specjax.core.files import parse_json, read_bytes

POLICIES = ("stop", "skip")
_SHOWN = 5  # bad lines that are named
_ESCAPED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Where each line is, and its bytes; empty lines are left out. Raises ValueError."""
    if not path.exists():
        raise ValueError(f"{path}: no such file; check the path.")
    for i, line in enumerate(read_bytes(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")):
        if line.strip():
            yield f"{path}, line {i + 1}", line


def parse_line(line: bytes, where: str, *, replace: bool = False) -> dict[str, Any]:
    """The object of a line.

    Args:
      line: UTF-8.
      where: begins the messages.
      replace: bytes and halves of surrogate pairs that are no character become U+FFFD.

    Raises:
      ValueError: if it is no object of characters, or one of its objects has a field twice.
    """
    try:
        text = line.decode("utf-8", errors="replace" if replace else "strict")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 at byte {error.start}; convert the file.") from None
    value = parse_json(text, where, unique=True)
    if _ESCAPED_HALF.search(line):
        value = _characters(value, where, replace=replace)
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not an object.")
    return value


def objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each line is, and its object. Raises ValueError on what is not one."""
    for where, line in read_lines(path):
        pulse.beat()
        yield where, parse_line(line, where)


def _characters(value: Any, where: str, *, replace: bool) -> Any:
    """The value, every text of it made of whole characters."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
        return value
    except UnicodeEncodeError as error:
        if not replace:
            raise ValueError(
                f"{where}: \\u{ord(text[error.start]):04x} alone is half of a surrogate pair "
                "and no character; fix the line."
            ) from None
    return json.loads("".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text))


class BadLines:
    """Lines that are left out: how many, and what is said of the first."""

    def __init__(self, num: int = 0, said: Sequence[str] = ()):
        self.num, self.said = num, list(said[:_SHOWN])

    def add(self, path: Path, error: ValueError) -> None:
        """Counts a line of ``path``."""
        self.num += 1
        if len(self.said) < _SHOWN:
            self.said.append(str(error).removeprefix(f"{path}, ").rstrip("."))

    def notes(self, path: Path, total: int) -> list[str]:
        """One line, if any of the ``total`` lines of ``path`` were skipped."""
        if not self.num:
            return []
        more = f"; and {self.num - _SHOWN} more" if self.num > _SHOWN else ""
        said = "; ".join(self.said)
        return [f"{path}: {self.num} of {total} lines are skipped: {said}{more}"]
