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


# A run of training that only shows that all of it works: a few steps, of little.
_QUICK = {
    "steps": 4,
    "warmup_steps": 1,
    "rows": 2,
    "accumulate": 1,
    "log_every": 2,
    "eval_every": 4,
    "checkpoint_every": 2,
    "eval": {"rows": 4, "prompts": 2, "max_new_tokens": 16},
}


def variant_of(config: ConfigDict, variant: str) -> ConfigDict:
    """A config of training as it is, or as ``FILE.py:quick``: a first run of a few steps.

    Raises:
      ValueError: in one line, on a variant that there is not.
    """
    if variant not in ("", "quick"):
        raise ValueError(f"there is no variant {variant!r}, only quick.")
    if variant == "quick":
        config.update({name: _QUICK[name] for name in _QUICK if name in config})
    return config


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
