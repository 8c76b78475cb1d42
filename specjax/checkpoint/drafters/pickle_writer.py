"""Writes tensors as PyTorch's `torch.save` does, without PyTorch: for readers of nothing else.

The file is an uncompressed zip: ``archive/data.pkl``, the program that rebuilds a dictionary of
tensors, and one ``archive/data/N`` with the raw bytes of each.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

_STORAGES = {
    np.dtype(np.float32): b"FloatStorage",
    np.dtype(jnp.bfloat16): b"BFloat16Storage",
}


def save_pickle(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes a dictionary of float32 and bfloat16 tensors."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", _program(tensors))
        archive.writestr("archive/byteorder", "little")
        for key, value in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{key}", np.ascontiguousarray(value).tobytes())
        archive.writestr("archive/version", "3\n")


def _program(tensors: Mapping[str, np.ndarray]) -> bytes:
    """``{name: _rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())}``."""
    code = [pickle.PROTO + b"\x02", pickle.EMPTY_DICT, pickle.MARK]
    for key, (name, value) in enumerate(tensors.items()):
        strides = [math.prod(value.shape[i + 1 :]) for i in range(value.ndim)]
        code += [
            _text(name),
            _name(b"torch._utils", b"_rebuild_tensor_v2"),
            pickle.MARK,
            pickle.MARK + _text("storage") + _name(b"torch", _STORAGES[value.dtype]),
            _text(str(key)) + _text("cpu") + _integer(value.size) + pickle.TUPLE + pickle.BINPERSID,
            _integer(0) + _tuple(value.shape) + _tuple(strides) + pickle.NEWFALSE,
            _name(b"collections", b"OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE,
            pickle.TUPLE + pickle.REDUCE,
        ]
    return b"".join([*code, pickle.SETITEMS, pickle.STOP])


def _text(value: str) -> bytes:
    raw = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw


def _integer(value: int) -> bytes:
    raw = pickle.encode_long(value)
    return pickle.LONG1 + bytes([len(raw)]) + raw


def _tuple(values: tuple[int, ...] | list[int]) -> bytes:
    return pickle.MARK + b"".join(map(_integer, values)) + pickle.TUPLE


def _name(module: bytes, name: bytes) -> bytes:
    return pickle.GLOBAL + module + b"\n" + name + b"\n"
