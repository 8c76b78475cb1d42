"""What results depend on: kept beside them, so that nobody continues them with something else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from specjax.core.files import read_json, write_atomically

Settings = Mapping[str, Any]  # of JSON values
# What records of earlier versions do not say: such a run may go on.
SINCE = ("checkpoints",)


@dataclasses.dataclass(frozen=True)
class Place:
    """A file or directory with the results of one run, and where it says what they depend on."""

    path: Path
    record: Path  # JSON, such as run.json
    flag: str  # that named it, such as --workdir

    def claim(self, settings: Settings, free: Collection[str] = ()) -> None:
        """Makes the place this run's, or sees that it already is.

        Args:
          settings: what results depend on, in JSON values. One that is not there is None.
          free: those that may change between a run and its continuation.

        Raises:
          ValueError: in one line, if the place is another run's, or its record is damaged.
          OSError: if it cannot be read or written.
        """
        now = json.loads(json.dumps(settings))
        if self.record.exists():
            return self.compare(self._read(), now, free)
        self.record.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.record, json.dumps(now, indent=1) + "\n")

    def _read(self) -> Settings:
        before = read_json(self.record)
        if not isinstance(before, dict):
            raise ValueError(
                f"{self.record} is damaged: it holds no settings; restore it, or use another "
                f"{self.flag}."
            )
        return before

    def compare(self, before: Settings, now: Settings, free: Collection[str] = ()) -> None:
        """Raises ValueError, in one line, if two runs differ in what is not ``free``."""
        free = (*free, *(name for name in SINCE if name not in before))
        found = list(differences(before, now, free))
        if found:
            first, names = found[0], [d.name for d in found]
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise ValueError(
                f"{self.flag}={self.path} holds a run with another {', '.join(names[:4])}{more}: "
                f"it was written with {first.told('this one')}; use another {self.flag}, or the "
                f"settings in {self.record.name}."
            )


UNSET = object()  # what a run has of a setting that it does not know, or leaves at its default


@dataclasses.dataclass(frozen=True)
class Difference:
    """A setting that two runs have not in common."""

    name: str  # dotted
    before: Any
    now: Any

    def told(self, who: str) -> str:
        """As in ``seed=0, this one has 1``; ``who`` is the second run."""
        return f"{self.name}={shown(self.before)}, {who} has {shown(self.now)}"


def differences(
    before: Settings, now: Settings, free: Collection[str] = ()
) -> Iterator[Difference]:
    """What differs between two runs' settings, by name; of groups of settings, their members."""
    for name in sorted((before.keys() | now.keys()) - set(free)):
        old, new = before.get(name), now.get(name)
        if _is_group(old) and _is_group(new):
            inner = differences(old, new)
            yield from (dataclasses.replace(d, name=f"{name}.{d.name}") for d in inner)
        elif old != new:
            yield Difference(name, before.get(name, UNSET), now.get(name, UNSET))


def _is_group(value: Any) -> TypeGuard[Settings]:
    """Whether a mapping is of names, and not, for example, of files."""
    return isinstance(value, Mapping) and all(str(name).isidentifier() for name in value)


def shown(value: Any, length: int = 200) -> str:
    if value is UNSET:
        return "nothing of it"
    return "None" if value is None else shorten(json.dumps(value, ensure_ascii=False), length)


def shorten(text: str, length: int = 40) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
