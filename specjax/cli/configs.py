"""Configs made of records: what files of configs/ return, and what is read of them."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from specjax.core.options import check_counts, default_of


def config_of(kind: type, /, **own: Any) -> ConfigDict:
    """The fields that a record takes from --config, with their defaults.

    Args:
      kind: a dataclass; where some of its options are of --config (`option`), those alone.
      own: values of some, and of all that have no default. Those of a group are merged.
    """
    made = ConfigDict()
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    some = any(field.metadata.get("config") for field in fields)
    for field in fields:
        if some and not field.metadata["config"]:
            continue
        name, hint = field.name, hints[field.name]
        if dataclasses.is_dataclass(hint):
            made[name] = config_of(typing.cast(type, hint), **own.pop(name, {}))
            continue
        value = own.pop(name, default_of(field))
        if value is dataclasses.MISSING:
            raise TypeError(f"{kind.__name__}: {name} has no default.")
        if value is None:
            kept = plain(hint)
            value = config_dict.placeholder(typing.get_origin(kept) or kept)
        made[name] = ConfigDict(dict(value)) if isinstance(value, Mapping) else value
    if own:
        raise TypeError(f"{kind.__name__} has no field {', '.join(own)}.")
    return made


def plain(hint: Any) -> Any:
    """A type without None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def take_fields(kind: type, config: Any) -> dict[str, Any]:
    """The fields of --config that a record takes.

    Raises:
      ValueError: in one line, if one is missing, unknown, or a count below its least.
    """
    try:
        given: dict[str, Any] = config.to_dict()
    except Exception as error:  # whatever the user's file raises
        raise ValueError(f"--config cannot be read: {error}") from None
    known = {f.name: f for f in dataclasses.fields(kind) if f.metadata["config"]}
    for name in sorted(given.keys() ^ known.keys()):
        what = "lacks the field" if name in known else "has the unknown field"
        raise ValueError(f"--config {what} {name!r}; start from a copy of the one in configs/.")
    check_counts(known.values(), given, "--config.")
    return given
