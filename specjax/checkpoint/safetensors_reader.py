"""Reads safetensors: all headers first, then one tensor at a time.

A file is an 8-byte little-endian header length, a JSON header (name -> dtype, shape, byte span) and
the tensors' bytes. Everything that can be wrong with the files shows in the headers, so a damaged
checkpoint is refused before any weight is read. Of a tensor what is asked for is read, and no more:
bfloat16 included, which NumPy alone does not know.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from specjax.checkpoint.errors import CheckpointError, some
from specjax.core.files import is_there, open_file, read_json
from specjax.core.tensors import Index, Tensor

INDEX = "model.safetensors.index.json"
_MAX_HEADER = 100_000_000  # bytes, the limit of the format

_DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "U32": np.uint32,
        "I32": np.int32,
        "U64": np.uint64,
        "I64": np.int64,
        "F8_E4M3": jnp.float8_e4m3fn,
        "F8_E5M2": jnp.float8_e5m2,
        "F16": np.float16,
        "BF16": jnp.bfloat16,
        "F32": np.float32,
        "F64": np.float64,
    }.items()
}


def read_headers(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, none of them read.

    Raises:
      CheckpointError: if the file is truncated, malformed or holds an unknown dtype.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if start == b"version ":
            raise CheckpointError(
                f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` there."
            )
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8 or length > _MAX_HEADER:
            raise CheckpointError(
                f"{path}: truncated or not safetensors: its header should be {length} bytes, the "
                f"file has {size}; fetch it again."
            )
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates)
    except _Duplicate as error:
        raise CheckpointError(f"{path}: duplicate entry {error} in the header.") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: its safetensors header is not JSON.") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its safetensors header is not a JSON object.")
    header.pop("__metadata__", None)

    data_start, available = 8 + length, size - 8 - length
    tensors, spans = {}, []
    for name, entry in header.items():
        shape, dtype, begin, end = _entry(path, name, entry)
        if end > available:
            raise CheckpointError(
                f"{path}: truncated: tensor {name} ends at byte {data_start + end}, the file has "
                f"{size}; fetch it again."
            )
        spans.append((begin, end, name))
        stored = Stored(path, data_start + begin, shape, dtype)
        tensors[name] = Tensor(shape, dtype, functools.partial(_itself, stored))

    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise CheckpointError(
                f"{path}: the bytes of tensor {name} do not follow those of the tensor before it; "
                "the file is damaged."
            )
        position = end
    if position != available:
        raise CheckpointError(
            f"{path}: {available - position} bytes after the last tensor; the file is damaged."
        )
    return tensors


def read_directory(directory: Path) -> dict[str, Tensor]:
    """The tensors of a Hugging Face directory: one file, or shards that an index lists.

    Raises:
      CheckpointError: if there is no safetensors file, if there are several without an index, if
        index and files disagree, or as `read_headers` does.
    """
    files = {p.name: p for p in sorted(directory.glob("*.safetensors"))}
    index = directory / INDEX
    if is_there(index):
        if "model.safetensors" in files and "model.safetensors" not in _weight_map(index).values():
            raise CheckpointError(
                f"{directory}: holds both model.safetensors and an index of other files ({INDEX}); "
                "remove one of them."
            )
        return _read_shards(directory, _weight_map(index))
    if len(files) > 1:
        raise CheckpointError(
            f"{directory}: {len(files)} safetensors files ({some(files)}) but no {INDEX} that says "
            "which tensor is where; add the index or keep one file."
        )
    if not files:
        pickles = sorted(p.name for p in directory.glob("*.bin"))
        hint = f"; {some(pickles)}: convert the pickle to safetensors" if pickles else ""
        raise CheckpointError(f"{directory}: no *.safetensors file{hint}.")
    return read_headers(next(iter(files.values())))


def _read_shards(directory: Path, weight_map: dict[str, str]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    home: dict[str, str] = {}
    for file in sorted(set(weight_map.values())):
        path = directory / file
        if Path(file).name != file or file in ("", "..") or not is_there(path):
            raise CheckpointError(
                f"{directory / INDEX}: names the file {file}, which is not in that directory; "
                "fetch it or correct the index."
            )
        for name, tensor in read_headers(path).items():
            if name in home:
                raise CheckpointError(
                    f"{directory}: duplicate tensor {name}, in {home[name]} and in {file}."
                )
            home[name], tensors[name] = file, tensor
    for name, file in weight_map.items():
        if home.get(name) != file:
            raise CheckpointError(
                f"{directory / INDEX}: says that tensor {name} is in {file}, but it is "
                f"{'in ' + home[name] if name in home else 'missing there'}."
            )
    if extra := home.keys() - weight_map.keys():
        raise CheckpointError(
            f"{directory}: {len(extra)} tensors that {INDEX} does not list: {some(extra)}."
        )
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = read_json(index)["weight_map"]
    except (ValueError, KeyError, TypeError):
        weight_map = None
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise CheckpointError(f"{index}: not JSON with a weight_map of tensor names to file names.")
    if not weight_map:
        raise CheckpointError(f"{index}: its weight_map is empty.")
    return weight_map


def _entry(path: Path, name: str, entry: Any) -> tuple[tuple[int, ...], np.dtype, int, int]:
    """Shape, dtype and byte span of one header entry, checked against each other."""
    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        # A longer shape is none, and its product may take minutes.
        whole = len(shape) <= 8 and all(
            type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end)
        )
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole:
        raise CheckpointError(f"{path}: malformed header entry of tensor {name}.")
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name} has the unknown dtype {kind!r} (known: {', '.join(_DTYPES)})."
        )
    dtype = _DTYPES[kind]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(
            f"{path}: tensor {name} of shape {list(shape)} in {kind} does not fit its "
            f"{end - begin} bytes; the file is damaged."
        )
    return shape, dtype, begin, end


@dataclasses.dataclass(frozen=True)
class Stored:
    """The values of a tensor in a file, as a `Readable`; `numpy.asarray` makes an array of it."""

    path: Path
    start: int  # byte of the file
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        """Boxes, and whatever else NumPy takes."""
        if (rows := self._rows(index)) is None:
            found: np.ndarray = self._mapped()[index]
            return found
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        self._read(rows, out)
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # it always is one
        return self[()].astype(dtype or self.dtype, copy=False)

    def read_into(self, index: Index, out: np.ndarray) -> bool:
        """Reads a box to where it belongs; False, and nothing done, if it is in several pieces."""
        rows = self._rows(index)
        if rows is None or out.dtype != self.dtype or not out.flags.c_contiguous:
            return False
        self._read(rows, out)
        return True

    def _rows(self, index: Any) -> range | None:
        """The rows that a box is made of, which lie behind one another; None: it is another."""
        boxed = isinstance(index, tuple) and all(isinstance(s, slice) for s in index)
        if not boxed or not self.shape or len(index) > len(self.shape):
            return None
        whole = (s.indices(n) == (0, n, 1) for s, n in zip(index[1:], self.shape[1:]))
        first = range(self.shape[0])[index[0]] if index else range(self.shape[0])
        return first if first.step == 1 and all(whole) else None

    def _read(self, rows: range, out: np.ndarray) -> None:
        # Mapped, it would come a few pages at a time, each of them a fault.
        line = math.prod(self.shape[1:]) * self.dtype.itemsize
        left = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        at = self.start + rows.start * line
        with open(self.path, "rb", buffering=0) as file:
            while left:
                got = os.preadv(file.fileno(), [left], at)
                if not got:
                    raise CheckpointError(f"{self.path}: ended while it was read; fetch it again.")
                left, at = left[got:], at + got

    def _mapped(self) -> np.ndarray:
        if 0 in self.shape:
            return np.zeros(0, self.dtype).reshape(self.shape)
        count = math.prod(self.shape) * self.dtype.itemsize
        mapped = np.memmap(self.path, np.uint8, "r", self.start, (count,))
        return mapped.view(self.dtype).reshape(self.shape)


def _itself(stored: Stored) -> Stored:
    return stored


class _Duplicate(Exception):
    pass


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise _Duplicate(name)
        result[name] = value
    return result
