"""Reads the tensors of a PyTorch pickle, and nothing else: no code in a checkpoint ever runs.

A pickle is a program that may call anything importable. Here its instructions are looked through
first, and a name that it wants is granted only if it stands in a short list: PyTorch's two
functions that rebuild a tensor, its storage types, and ordered dictionaries. What those names give
are stand-ins of this file, which note where the bytes of a tensor lie; the bytes are mapped when
the tensor is asked for, as with safetensors.

Two containers exist: an uncompressed zip (since PyTorch 1.6), with the pickle in ``data.pkl`` and a
file a storage, and the older sequence of five pickles followed by the storages.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from specjax.checkpoint.errors import CheckpointError
from specjax.core.files import open_file
from specjax.core.tensors import Tensor

_STORAGES: dict[str, np.dtype] = {
    f"{name}Storage": np.dtype(dtype)
    for name, dtype in {
        "Double": np.float64,
        "Float": np.float32,
        "Half": np.float16,
        "BFloat16": jnp.bfloat16,
        "Long": np.int64,
        "Int": np.int32,
        "Short": np.int16,
        "Char": np.int8,
        "Byte": np.uint8,
        "Bool": np.bool_,
    }.items()
}
# What state dictionaries are written with. Everything else (INST, OBJ, NEWOBJ, EXT: further ways
# to get at a class) has no business in one.
# fmt: off
_INSTRUCTIONS = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1",
    "BININT2", "LONG", "LONG1", "BINFLOAT", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING", "EMPTY_DICT", "DICT", "SETITEM",
    "SETITEMS", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET",
    "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID",
})
# fmt: on
_REMEMBER = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_MAX_PROGRAM = 1 << 26  # bytes of the pickle itself; real ones are a few kB
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    size: int  # elements


@dataclasses.dataclass(frozen=True)
class _View:
    """A tensor: some elements of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


class _StandIn:
    """What a granted name gives: it can be called, and no attribute can be set on it."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]):
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)


class _Refused(Exception):
    """The message is the end of a sentence about the file."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _StandIn(_rebuild_tensor)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _StandIn(_rebuild_parameter)
        if (module, name) == ("collections", "OrderedDict"):
            return _StandIn(collections.OrderedDict)
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise _Refused(f"wants {module}.{name}, which is not a tensor; nothing was run")

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", np.dtype() as dtype, str(key), str(), int(size), *rest):
                if any(r is not None for r in rest):
                    raise _Refused(f"holds a view of storage {key}, which is not supported")
                return _Storage(key, dtype, size)
        raise _Refused(f"refers to a {type(pid).__name__} that is not a storage")


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _View:
    del rest  # whether it wants a gradient; hooks
    whole = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)
    whole = whole and len(shape) <= 8
    if not (isinstance(storage, _Storage) and whole):
        raise _Refused("rebuilds a tensor from something that is no storage")
    if any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)):
        raise _Refused("rebuilds a tensor with impossible sizes")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides))
    if math.prod(shape) and (last >= storage.size or math.prod(shape) > storage.size):
        raise _Refused(f"holds a tensor {list(shape)} that exceeds its storage {storage.key}")
    return _View(storage, offset, shape, strides)


def _rebuild_parameter(view: Any, *rest: Any) -> _View:
    del rest
    if not isinstance(view, _View):
        raise _Refused("makes a parameter of something that is no tensor")
    return view


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch file, none of them read.

    Raises:
      CheckpointError: if the file is damaged, is no flat dictionary of tensors, or wants anything
        but tensors, which is named and was not run.
    """
    try:
        with open_file(path) as file:  # no pipe
            zipped = zipfile.is_zipfile(file)
        if zipped:
            found, places = _read_zip(path)
        else:
            found, places = _read_legacy(path)
        if not isinstance(found, Mapping):
            raise _Refused(f"holds a {type(found).__name__}, not a dictionary of tensors")
        tensors = {}
        for name, view in found.items():
            if not isinstance(name, str) or not isinstance(view, _View):
                key = repr(name[:60]) if isinstance(name, str) else f"a {type(name).__name__}"
                raise _Refused(
                    f"holds {key}: a {type(view).__name__}; only a flat dictionary "
                    "of tensors is supported"
                )
            tensors[name] = _tensor(path, view, places)
        return tensors
    except _Refused as error:
        raise CheckpointError(
            f"{path}: this PyTorch pickle {error}. Convert it to safetensors where it is trusted."
        ) from None


def _read_zip(path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The unpickled object, and start and length in bytes of each storage."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            programs = [name for name in entries if name.endswith("/data.pkl")]
            if len(programs) != 1:
                raise _Refused("is a zip file without one data.pkl")
            root = programs[0].removesuffix("data.pkl")
            if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
                raise _Refused("is compressed, which PyTorch never does")
            if entries[programs[0]].file_size > _MAX_PROGRAM:
                raise _Refused("has a program of an unlikely size")
            order = f"{root}byteorder"
            if order in entries and archive.read(order).strip() != b"little":
                raise _Refused("was written on a big-endian machine")
            found = _run(io.BytesIO(archive.read(programs[0])))
        with path.open("rb") as file:
            places = {
                name.removeprefix(f"{root}data/"): (_data_start(file, info), info.file_size)
                for name, info in entries.items()
                if name.startswith(f"{root}data/")
            }
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise _Refused(f"is damaged: {error}") from None
    return found, places


def _data_start(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where the bytes of an entry begin: behind its header, whose padding only it knows."""
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise _Refused(f"is damaged at entry {info.filename}")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return info.header_offset + 30 + lengths


def _read_legacy(path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Reads a file from before PyTorch 1.6 to what `_read_zip` gives."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if not size or file.read(1) != b"\x80":
            raise _Refused("is neither a zip file nor a pickle (truncated, or a Git LFS pointer?)")
        file.seek(0)
        if _run(file) != _LEGACY_MAGIC or _run(file) != _LEGACY_PROTOCOL:
            raise _Refused("does not begin as torch.save writes it")
        system, found, keys = _run(file), _run(file), _run(file)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise _Refused("was not written on a little-endian machine")
        if not isinstance(keys, list) or not isinstance(found, Mapping):
            raise _Refused("is no dictionary of tensors")
        widths = {
            v.storage.key: v.storage.dtype.itemsize for v in found.values() if isinstance(v, _View)
        }
        places = {}
        for key in keys:
            count = int.from_bytes(file.read(8), "little")
            start, length = file.tell(), count * widths.get(key, 0)
            if key not in widths or start + length > size:
                raise _Refused(f"is truncated, or storage {str(key)[:60]!r} is unused")
            places[key] = (start, length)
            file.seek(start + length)
    return found, places


def _run(file: Any) -> Any:
    """Looks through one pickle at the file's position, then runs it; leaves the file behind it."""
    start = file.tell()
    tuples, memo, is_tuple = set(), 0, False  # indices of the memo that hold one; its size
    try:
        for instruction, argument, position in pickletools.genops(file):
            name = instruction.name
            if name not in _INSTRUCTIONS:
                raise _Refused(f"has the instruction {name}, which no state dictionary needs")
            if position - start > _MAX_PROGRAM:
                raise _Refused("has a program of an unlikely size")
            # A memo index far beyond the program would only fill the memory.
            if name in ("PUT", "LONG_BINPUT") and int(argument or 0) > position - start:
                raise _Refused("uses impossible memo indices")
            # Tuples of one tuple twice, and so on: to hash or print them would take forever.
            if name in _REMEMBER:
                index = memo if argument is None else int(argument)
                memo += 1
                if is_tuple:
                    tuples.add(index)
                else:
                    tuples.discard(index)
            elif name in ("GET", "BINGET", "LONG_BINGET") and int(argument or 0) in tuples:
                raise _Refused("holds the same tuple twice, which no state dictionary needs")
            elif name not in ("PROTO", "FRAME"):
                is_tuple = name.startswith("TUPLE")
        end = file.tell()
        file.seek(start)
        value = _Reader(io.BytesIO(file.read(end - start))).load()
    except _Refused:
        raise
    except Exception as error:  # whatever a malformed program makes the interpreter raise
        raise _Refused(f"is malformed: {type(error).__name__}: {error}") from None
    file.seek(end)
    return value


def _tensor(path: Path, view: _View, places: Mapping[str, tuple[int, int]]) -> Tensor:
    storage, shape, dtype = view.storage, view.shape, view.storage.dtype
    start, length = places.get(storage.key, (0, -1))
    needed = storage.size * dtype.itemsize
    if length < needed or start + needed > path.stat().st_size:
        raise _Refused(f"lacks bytes of its storage {storage.key}; fetch the file again")

    def read() -> np.ndarray:
        if 0 in shape:
            return np.zeros(0, dtype).reshape(shape)
        flat = np.memmap(path, np.uint8, "r", start, (needed,)).view(dtype)[view.offset :]
        steps = tuple(s * dtype.itemsize for s in view.strides)
        return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)

    return Tensor(shape, dtype, read)
