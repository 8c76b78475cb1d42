"""A file of results, one JSON object a line, that a killed run continues.

Beside ``FILE`` lies ``FILE.settings.json`` with what the results depend on: a run with other
settings is refused instead of mixed in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specjax.core import hosts
from specjax.core.files import (
    Lock,
    add_line,
    parse_json,
    read_bytes,
    read_json,
    try_file,
    write_atomically,
)

ABOUT = ("prompt", "messages", "tools")  # the fields that say what a line is about


class ResultFile:
    """The lines of ``path``: those that are there already, and those appended."""

    def __init__(
        self, path: str | Path, settings: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]]
    ):
        """Opens or begins the file. A last line that was cut off by a kill is removed.

        Args:
          path: where the results are.
          settings: everything that they depend on but the prompts; JSON values.
          prompts: line i has the fields of prompt i, which say what it is about; JSON values.

        Raises:
          ValueError: in one line, if the file is not the beginning of this run's results, or
            another process is writing it.
          OSError: if it cannot be read or written.
        """
        self.path = Path(path).expanduser()
        self._sidecar = self.path.with_name(self.path.name + ".settings.json")
        settings = json.loads(json.dumps(settings))
        try_file(self.path, "--output")
        self._lock = Lock(self.path)
        try:
            self._open(settings, prompts)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, settings: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]]) -> None:
        data = read_bytes(self.path) if self.path.exists() else b""
        if data:
            self._compare_settings(settings)
        whole = data[: data.rfind(b"\n") + 1]
        self.records = self._parse(whole, prompts)
        if not data:
            write_atomically(self._sidecar, json.dumps(settings, indent=2) + "\n")
        self._file = self.path.open("ab", buffering=0)
        if len(whole) < len(data):
            self._file.truncate(len(whole))

    def _compare_settings(self, settings: Mapping[str, Any]) -> None:
        try:
            before = read_json(self._sidecar)
            if not isinstance(before, dict):
                raise ValueError("not an object")
        except (FileNotFoundError, ValueError):
            raise ValueError(
                f"{self.path} holds something that this command did not write ({self._sidecar.name}"
                " is missing or damaged); use another --output file."
            ) from None
        for name in sorted(before.keys() | settings.keys()):
            if before.get(name) != settings.get(name):
                raise ValueError(
                    f"{self.path} was written with {name}={before.get(name)!r}, this run has "
                    f"{name}={settings.get(name)!r}; use another --output file, or that setting."
                )

    def _parse(self, data: bytes, prompts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        records = []
        for i, line in enumerate(data.split(b"\n")[:-1]):
            where = f"{self.path}, line {i + 1}"
            try:
                record = parse_json(line, where)
                if not isinstance(record, dict) or not record.keys() & set(ABOUT):
                    raise ValueError("no record")
            except ValueError:
                raise ValueError(
                    f"{where}: not a result; delete it and the lines behind it, or use another "
                    "--output file."
                ) from None
            if i >= len(prompts):
                raise ValueError(
                    f"{where}: this run has {len(prompts)} prompts only; use another --output file."
                )
            asked = {name: record[name] for name in ABOUT if name in record}
            if asked != json.loads(json.dumps(prompts[i])):
                told = " ".join(json.dumps(list(prompts[i].values()), ensure_ascii=False).split())
                raise ValueError(
                    f"{where}: is about another prompt than prompt {i + 1} of this run, "
                    f"{shorten(told[1:-1])}; use another --output file."
                )
            records.append(record)
        return records

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a line; when this returns, it survives a crash."""
        add_line(self._file, json.dumps(record, ensure_ascii=False))
        self.records.append(dict(record))

    def close(self) -> None:
        """Closes the file, which another process may write now."""
        self._file.close()
        self._lock.release()


class Followed(ResultFile):
    """The same file on a process that is not the first: the lines, and never the file."""

    def __init__(self, path: str | Path, records: list[dict[str, Any]]):
        self.path, self.records = Path(path).expanduser(), records

    def append(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))

    def close(self) -> None:
        pass


def open_results(
    path: str | Path, settings: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]]
) -> ResultFile:
    """A `ResultFile` that process 0 writes; all of several processes plan after what it holds.

    Raises:
      ValueError, OSError: as `ResultFile`, on every process.
    """
    opened: list[ResultFile] = []

    def begin() -> list[dict[str, Any]]:
        opened.append(ResultFile(path, settings, prompts))
        return opened[0].records

    records = hosts.from_first(f"results of {path}", begin)
    return opened[0] if opened else Followed(path, records)


def shorten(text: str, length: int = 40) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
