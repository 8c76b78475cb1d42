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
from specjax.runs import lines
from specjax.runs.places import Lock, try_file
from specjax.runs.settings import Place, shorten

ABOUT = ("prompt", "messages", "tools")  # the fields that say what a line is about


class ResultFile:
    """The lines of ``path``: those that are there already, and those appended.

    Of several processes the first one has the file; all know its lines, and plan after them.
    """

    def __init__(
        self, path: str | Path, settings: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]]
    ):
        """Opens or begins the file.

        Args:
          path: where the results are.
          settings: everything that they depend on but the prompts; JSON values.
          prompts: line i has the fields of prompt i, which say what it is about; JSON values.

        Raises:
          ValueError: in one line, on every process, if the file is not the beginning of this run's
            results, or another process is writing it.
          OSError: if it cannot be read or written.
        """
        self.path = Path(path).expanduser()
        self._lock: Lock | None = None
        self.records: list[lines.Record] = hosts.from_first(
            f"results of {self.path}", lambda: self._open(settings, prompts)
        )

    def _open(
        self, settings: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]]
    ) -> list[lines.Record]:
        try_file(self.path, "--output")
        self._lock = Lock(self.path)
        try:
            self._claim(settings)
            otherwise = "delete it and the lines behind it, or use another --output file."
            records = lines.read(self.path, otherwise)
            for i, record in enumerate(records):
                _check_about(record, prompts, i, f"{self.path}, line {i + 1}")
            return records
        except BaseException:
            self.close()
            raise

    def _claim(self, settings: Mapping[str, Any]) -> None:
        place = Place(self.path, self.path.with_name(self.path.name + ".settings.json"), "--output")
        if not (self.path.exists() and self.path.stat().st_size):
            place.record.unlink(missing_ok=True)  # of a run that has written nothing
        elif not place.record.exists():
            raise ValueError(
                f"{self.path} holds something that this command did not write "
                f"({place.record.name} is missing); use another --output file."
            )
        place.claim(settings)

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a line; when this returns, it survives a crash."""
        if self._lock is not None:
            lines.append(self.path, record)
        self.records.append(dict(record))

    def close(self) -> None:
        """Gives the file back: another process may write it now."""
        if self._lock is not None:
            self._lock.release()


def _check_about(
    record: lines.Record, prompts: Sequence[Mapping[str, Any]], i: int, where: str
) -> None:
    """Raises ValueError, in one line, unless the i-th result is about the i-th prompt."""
    asked = {name: record[name] for name in ABOUT if name in record}
    if not asked:
        raise ValueError(
            f"{where}: not a result; delete it and the lines behind it, or use another --output "
            "file."
        )
    if i >= len(prompts):
        raise ValueError(
            f"{where}: this run has {len(prompts)} prompts only; use another --output file."
        )
    if asked != json.loads(json.dumps(prompts[i])):
        told = " ".join(json.dumps(list(prompts[i].values()), ensure_ascii=False).split())
        raise ValueError(
            f"{where}: is about another prompt than prompt {i + 1} of this run, "
            f"{shorten(told[1:-1])}; use another --output file."
        )
