"""Which way of an operation was the fastest on a device: what --kernels=tuned goes by.

`experiments.benchmark_device --tune=True` times them on the shapes that programs call, and keeps
in a file (`file`), for each kind of device and version of JAX, all figures and what was taken.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import jax

from specjax.core.files import locked, read_text, write_atomically

TUNED = "SPECJAX_TUNED"  # the environment variable that names the file for a process
COMMAND = "python -m experiments.benchmark_device --tune=True"
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Choice:
    """An operation on arguments of some shapes."""

    op: str
    given: str  # see `signature`
    seconds: Mapping[str, float]  # of one call, by way: whose kernels it runs
    way: str  # that is taken


class Choices:
    """What is taken where; equal are those of the same choices. It notes what it did not know."""

    def __init__(self, ways: Mapping[tuple[str, str], str]) -> None:
        self._ways = dict(ways)
        self.digest = hashlib.sha256(repr(sorted(ways.items())).encode()).hexdigest()[:16]
        self.unknown: set[tuple[str, str]] = set()

    def way(self, op: str, given: tuple[Any, ...]) -> str | None:
        """The way for such arguments; None: none was timed."""
        key = op, signature(given)
        if key not in self._ways:
            self.unknown.add(key)
        return self._ways.get(key)

    def ways(self, op: str) -> set[str]:
        """The ways of an operation that are taken for any shape."""
        return {way for (name, _), way in self._ways.items() if name == op}

    def note(self, op: Any, given: tuple[Any, ...]) -> None:
        """Is told of every call. See `Calls`."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Choices({len(self._ways)}, {self.digest})"


class Calls(Choices):
    """Chooses nothing, and keeps what is called while a program is traced: equal to itself only."""

    def __init__(self) -> None:
        super().__init__({})
        # By operation and `signature`: the operation, its arguments as shapes, and how often.
        self.found: dict[tuple[str, str], tuple[Any, tuple[Any, ...], int]] = {}

    def note(self, op: Any, given: tuple[Any, ...]) -> None:
        key = op.name, signature(given)
        count = self.found[key][2] if key in self.found else 0
        self.found[key] = op, jax.tree.map(_shape, given), count + 1

    __eq__ = object.__eq__
    __hash__ = object.__hash__


def _shape(x: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "dtype") else x


def signature(given: tuple[Any, ...]) -> str:
    """Arguments in words that are the same in every process: shapes, types, names of functions."""
    kept = [x for x in given if type(x).__name__ != "Platform"]
    leaves, structure = jax.tree.flatten(kept, is_leaf=lambda x: x is None)
    told = [", ".join(map(_told, leaves)), re.sub(r" at 0x[0-9a-f]+", "", str(structure))]
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        told.append(str(dict(mesh.shape)))
    return " | ".join(told)


def _told(x: Any) -> str:
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"{jax.numpy.dtype(x.dtype).name}{list(x.shape)}"
    if callable(x) and hasattr(x, "__qualname__"):
        return f"{x.__module__}.{x.__qualname__}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(x))


def file() -> Path:
    """That which SPECJAX_TUNED names, else one beside the compiled programs."""
    from specjax.core.compile_cache import default_directory  # only here: it needs a platform

    named = os.environ.get(TUNED)
    return Path(named).expanduser() if named else default_directory() / "tuned.json"


def check_named() -> None:
    """Raises ValueError, in one line, if SPECJAX_TUNED names what is no file of choices."""
    if os.environ.get(TUNED):
        if not file().exists():
            raise ValueError(f"--tuned={file()}: no such file; it is made with {COMMAND}")
        read(file())


def named(kind: str) -> str:
    """The name under which files keep what was timed on a kind of device, as JAX calls it."""
    return f"{kind}, jax {jax.__version__}"


def of(kind: str) -> Choices:
    """Those for a kind of device, of `file`.

    Raises:
      ValueError: in one line, if there are none, which says how they are made.
    """
    path, device = file(), named(kind)
    if (found := read(path).get(device)) is None:
        raise ValueError(
            f"--kernels=tuned: {path} has nothing of {device}; make it there with {COMMAND}"
        )
    return taken(found)


def taken(choices: Sequence[Choice]) -> Choices:
    """What is taken by them."""
    return Choices({(one.op, one.given): one.way for one in choices})


def read(path: Path) -> dict[str, list[Choice]]:
    """All choices of a file, by device. Raises ValueError, in one line, if it is none of ours."""
    try:
        found = json.loads(read_text(path))
        if found["version"] != _VERSION:
            raise ValueError(f"version {found['version']}")
        return {name: [_choice(one) for one in of] for name, of in found["devices"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: no file of choices of kernels ({error}).") from None


def _choice(told: Mapping[str, Any]) -> Choice:
    from specjax.core.platform import Kernels  # only here: it holds choices

    one = Choice(**told)
    ways = [way for way in get_args(Kernels) if way != "tuned"]
    if not (isinstance(one.op, str) and isinstance(one.given, str) and one.way in ways):
        raise ValueError(f"way {one.way!r} of {one.op!r}; ways are {', '.join(ways)}")
    return one


def add(path: Path, device: str, choices: Sequence[Choice]) -> None:
    """Writes what was timed on a device in the place of what was there of the same shapes.

    What other processes add meanwhile stays. Raises ValueError as `read`; OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        devices = read(path)
        of = {(one.op, one.given): one for one in (*devices.get(device, []), *choices)}
        devices[device] = list(of.values())
        told = {name: [dataclasses.asdict(one) for one in each] for name, each in devices.items()}
        write_atomically(path, json.dumps({"version": _VERSION, "devices": told}, indent=1) + "\n")
