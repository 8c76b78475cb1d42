"""Flags of the form --config.field=value, checked by name and type before anything reads them.

ml_collections says what is wrong with them in several ways, some with a traceback, and some where a
flag is only defined: here each is a line, with the nearest field there is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_OVERRIDE = re.compile(r"--?(?P<no>no)?config\.(?P<path>[^=]+)(?P<equals>=(?P<text>.*))?", re.S)
_FILE = re.compile(r"--?config(?:=(?P<path>.*))?", re.S)
_WANTED = {int: "a whole number", float: "a number", bool: "true or false"}
# Groups that are handed to a class of the user's own: of sizes, and of hyperparameters.
_OPEN = ("sizes", "objective")
_ALIKE = 0.6  # of difflib, from where a name was probably meant
_BOOLEANS = ("true", "t", "1", "false", "f", "0")


@dataclasses.dataclass(frozen=True)
class Override:
    """One ``--config.path=text``."""

    path: str  # with dots, without indices
    indexed: bool  # whether a member of a tuple is meant
    text: str | None  # None: a boolean without a value

    def __str__(self) -> str:
        return f"--config.{self.path}" + ("" if self.text is None else f"={self.text}")


def check(argv: Sequence[str], default: str | Path | None = None) -> None:
    """Raises ValueError, in one line, on an override that names no field or is of another type."""
    given, named = list(overrides(argv)), named_file(argv)
    if not given and named is None:
        return
    file = named or default
    if file is None:
        raise ValueError(f"{given[0]} goes with --config, such as --config=configs/NAME.py.")
    config = load(str(file))
    for override in given:
        check_one(override, config, named or "the default config")


def overrides(argv: Sequence[str]) -> Iterator[Override]:
    """In the order of the command line, in any form that absl takes."""
    for argument, after in zip(argv, [*argv[1:], None]):
        found = _OVERRIDE.fullmatch(argument)
        if found is None:
            continue
        name, bracket, _ = found["path"].partition("[")
        text = found["text"] if found["equals"] else after
        if found["no"] or (not found["equals"] and (after is None or after.startswith("-"))):
            text = None
        yield Override(name, bool(bracket), text)


def named_file(argv: Sequence[str]) -> str | None:
    """What --config names last."""
    last = None
    for argument, after in zip(argv, [*argv[1:], None]):
        found = _FILE.fullmatch(argument)
        if found is not None:
            last = after if found["path"] is None else found["path"]
    return last


def field_called(name: str, argv: Sequence[str], default: Path | None) -> str | None:
    """The field of the config that is called ``name``, whatever group it is in."""
    file = named_file(argv) or default
    fields = [] if file is None else [path for path, _ in leaves(load(str(file)))]
    return next((f for f in fields if f.rpartition(".")[2] == name), None)


def load(named: str) -> ConfigDict:
    """The config of ``FILE.py`` or ``FILE.py:VARIANT``. Raises ValueError, in one line."""
    file, colon, variant = named.partition(":")
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"--config={named}: no such file; those of this project are in configs/.")
    try:
        spec = importlib.util.spec_from_file_location("_config", path)
        if spec is None or spec.loader is None:
            raise ValueError("its name does not end in .py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config(*[variant] * bool(colon))
    except ValueError as error:
        raise ValueError(f"--config={named}: {error}") from None
    except Exception as error:
        raise ValueError(
            f"--config={named} cannot be read as a config: {type(error).__name__}: {error}"
        ) from None
    if not isinstance(config, ConfigDict):
        raise ValueError(f"--config={named}: its get_config returns no ConfigDict.")
    return config


def check_one(override: Override, config: ConfigDict, file: str) -> None:
    """Raises ValueError unless the config has the field, and takes the value."""
    fields = dict(leaves(config))
    if override.path not in fields and is_open(override.path, config):
        if override.text is None:
            raise ValueError(f"{override}: write {override}=VALUE.")
        return
    if override.path not in fields:
        if override.path in _OPEN and override.path in config and not len(config[override.path]):
            raise ValueError(f"{override}: write --config.{override.path}.NAME=VALUE.")
        inside = sorted(f for f in fields if f.startswith(f"{override.path}."))
        if inside:
            raise ValueError(
                f"--config.{override.path} is a group: set one of its fields, such as "
                f"--config.{inside[0]}."
            )
        raise ValueError(
            f"--config.{override.path}: {file} has no such field; {nearest(override.path, fields)}"
        )
    now, text = fields[override.path], override.text
    wanted = _WANTED.get(type(now))
    if override.indexed or wanted is None or text is None:
        return
    if not _fits(text, type(now)):
        raise ValueError(f"{override}: must be {wanted}; in {file} it is {now!r}.")


def is_open(path: str, config: ConfigDict) -> bool:
    """Whether a field that the file lacks may be given: in a group that it leaves empty.

    What such a group holds is up to a class of the user's own, which says what it does not know.
    """
    group, dot, name = path.rpartition(".")
    if not dot or not name.isidentifier() or group not in _OPEN:
        return False
    return group in config and (not len(config[group]) or path == "objective.name")


def _fits(text: str, kind: type) -> bool:
    if kind is bool:
        return text.lower() in _BOOLEANS
    with contextlib.suppress(ValueError):
        kind(text)
        return True
    return False


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path with dots, value) of every field."""
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def nearest(path: str, fields: Mapping[str, Any]) -> str:
    """Words about the field that was meant: the most alike, by its whole path and its own name."""

    def alike(field: str) -> float:
        pairs = ((path, field), (path.rpartition(".")[2], field.rpartition(".")[2]))
        return sum(difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs) / 2

    best = max(fields, key=alike)
    if alike(best) >= _ALIKE:
        return f"did you mean --config.{best}?"
    group = path.rpartition(".")[0]
    there = [f for f in fields if f.rpartition(".")[0] == group] or list(fields)
    return f"there are {', '.join(there)}."
