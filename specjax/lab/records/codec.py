"""Dataclasses as JSON objects, and back: the one reader and writer of all records.

A field is a member of the object, by its name. Not known is null: of a float that is NaN, too. A
field with ``absent`` is left out while it has its default, as what does not apply to a record is.
Files of older versions lack fields that came later: those with a default may be missing. What a
file has besides the fields is passed over.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from specjax.core.files import parse_json, read_bytes, write_atomically

R = TypeVar("R")


def absent(default: Any = None) -> Any:
    """A field that is not written while it has its default."""
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata={"absent": default})
    return dataclasses.field(default=default, metadata={"absent": default})


def named(key: str) -> Any:
    """A field whose member of the object has a name that Python does not take."""
    return dataclasses.field(metadata={"key": key})


def _key_of(field: dataclasses.Field[Any]) -> str:
    return str(field.metadata.get("key", field.name))


def to_json(value: Any) -> Any:
    """A record, or a list or mapping of such, as JSON values."""
    if dataclasses.is_dataclass(value):
        found = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {
            _key_of(f): to_json(v)
            for f, v in found
            if "absent" not in f.metadata or v != f.metadata["absent"]
        }
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def from_json(kind: type[R], value: Any, where: str) -> R:
    """Reads what `to_json` wrote.

    Args:
      kind: a dataclass.
      value: of a file.
      where: what it is called in messages, such as the file and the case.

    Raises:
      ValueError: in one line that names the field, on what is no such record.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {_shown(value)}, not an object.")
    hints: dict[str, Any] = _hints(kind)  # type: ignore[arg-type]
    fields = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        key = _key_of(field)
        if key in value:
            fields[field.name] = _read(hints[field.name], value[key], f"{where}: {key}")
        elif _is_required(field):
            raise ValueError(f"{where} has no {key!r}.")
    try:
        return kind(**fields)
    except ValueError as error:  # of a record that checks itself
        raise ValueError(f"{where}: {error}") from None


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _read(kind: Any, value: Any, where: str) -> Any:
    """``value`` as ``kind``: a type as a field of a record may have it."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):  # of None and one other
        if value is None:
            return None
        return _read(next(k for k in inner if k is not type(None)), value, where)
    if dataclasses.is_dataclass(kind):
        return from_json(typing.cast(type, kind), value, where)
    if origin is typing.Literal:
        if type(value) is type(inner[0]) and value in inner:
            return value
    elif origin is tuple and isinstance(value, Sequence) and not isinstance(value, str):
        several = [inner[0]] * len(value) if inner[-1] is ... else inner
        if len(several) == len(value):
            pairs = enumerate(zip(several, value))
            return tuple(_read(k, v, f"{where}[{i}]") for i, (k, v) in pairs)
    elif origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        key, held = inner
        return {_key(key, k, where): _read(held, v, f"{where}[{k}]") for k, v in value.items()}
    elif kind is float and (value is None or type(value) in (int, float)):
        return math.nan if value is None else float(value)
    elif (kind is int and type(value) is int) or (isinstance(kind, type) and type(value) is kind):
        return value
    raise ValueError(f"{where} is {_shown(value)}, which it cannot be.")


def _key(kind: Any, key: str, where: str) -> Any:
    try:
        return int(key) if kind is int else key
    except ValueError:
        raise ValueError(f"{where}: {key!r} is no whole number.") from None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:39] + "…"


def write_file(path: Path, value: Any) -> None:
    """Writes JSON at once, or not at all. Raises OSError."""
    write_atomically(path, json.dumps(to_json(value), indent=1, ensure_ascii=False) + "\n")


def read_file(path: Path) -> Any:
    """The JSON of a file. Raises ValueError, in one line, if it holds none, or OSError."""
    return parse_json(read_bytes(path), f"{path} is damaged")


def check_version(found: Any, known: int, where: str) -> None:
    """Refuses files of versions that are not known; those without one are of the first."""
    if isinstance(found, Mapping) and found.get("version", 1) != known:
        raise ValueError(
            f"{where} is of version {found['version']!r}, this program reads version {known}."
        )
