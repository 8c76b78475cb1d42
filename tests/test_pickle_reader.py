"""The reader of PyTorch pickles: the same tensors, and no code of theirs ever runs."""

from __future__ import annotations

import os
import pickle
import re
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specjax.checkpoint import CheckpointError
from specjax.checkpoint.pickle_reader import read_pickle
from specjax.checkpoint.safetensors_reader import read_headers


@pytest.mark.parametrize(
    "pickled, twin",
    [
        ("medusa-llama3/medusa_lm_head.pt", "medusa-llama3/medusa_lm_head.safetensors"),
        ("eagle3-llama3/pytorch_model.bin", "eagle3-llama3/model.safetensors"),
    ],
)
def test_a_pickle_equals_its_twin(shared: Path, pickled: str, twin: str) -> None:
    ours = read_pickle(shared / "parity" / pickled)
    theirs = read_headers(shared / "parity" / twin)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, tensor in ours.items():
        assert tensor.shape == theirs[name].shape
        # One of the pickles is float16, to which its twin in bfloat16 is rounded.
        np.testing.assert_array_equal(tensor.read(), theirs[name].values().astype(tensor.dtype))


def zipped(path: Path, program: bytes, storages: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program)
        for key, data in storages.items():
            archive.writestr(f"x/data/{key}", data)
    return path


def tensor_program(
    size: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> bytes:
    """A pickle of {"w": a float32 tensor}, written by hand."""

    def put(value: Any) -> bytes:
        if isinstance(value, str):
            return b"X" + struct.pack("<I", len(value)) + value.encode()
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        return b"(" + b"".join(map(put, value)) + b"t"

    storage = b"(" + put("storage") + b"ctorch\nFloatStorage\n" + put("0") + put("cpu")
    storage += put(size) + b"tQ"
    arguments = b"(" + storage + put(offset) + put(shape) + put(strides) + b"\x89"
    arguments += b"ccollections\nOrderedDict\n)Rt"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"
    return b"\x80\x02}" + put("w") + rebuilt + b"s."


def test_strides_and_bounds_of_a_pickle(tmp_path: Path) -> None:
    data = np.arange(12, dtype=np.float32)
    storages = {"0": data.tobytes()}
    path = zipped(tmp_path / "t.bin", tensor_program(12, 2, (2, 3), (1, 3)), storages)
    np.testing.assert_array_equal(read_pickle(path)["w"].read(), [[2, 5, 8], [3, 6, 9]])
    for shape, strides, offset in [((4, 4), (4, 1), 0), ((2, 6), (6, 1), 1), ((1 << 20,), (0,), 0)]:
        zipped(path, tensor_program(12, offset, shape, strides), storages)
        with pytest.raises(CheckpointError, match="exceeds its storage 0"):
            read_pickle(path)
    zipped(path, tensor_program(99, 0, (99,), (1,)), storages)
    with pytest.raises(CheckpointError, match="lacks bytes of its storage 0"):
        read_pickle(path)


def test_a_pickle_of_old(tmp_path: Path) -> None:
    data = np.arange(12, dtype=np.float32)
    # The older container: five pickles, then each storage with its length.
    program = tensor_program(12, 0, (3, 4), (4, 1)).replace(b"tQ", b"NtQ")
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    parts = [pickle.dumps(h, 2) for h in head] + [program, pickle.dumps(["0"], 2)]
    path = tmp_path / "old.bin"
    path.write_bytes(b"".join(parts) + struct.pack("<q", 12) + data.tobytes())
    np.testing.assert_array_equal(read_pickle(path)["w"].read(), data.reshape(3, 4))
    path.write_bytes(b"".join(parts) + struct.pack("<q", 12) + data.tobytes()[:-8])
    with pytest.raises(CheckpointError, match="truncated"):
        read_pickle(path)


class Evil:
    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("container", ["zip", "plain"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_code_of_a_pickle_runs(tmp_path: Path, container: str, protocol: int) -> None:
    mark = tmp_path / "ran"
    touch = ["touch", str(mark)]
    programs = {
        "os.system|posix.system": Evil(os.system, f"touch {mark}"),
        "builtin(s|__).eval": Evil(eval, f"open({str(mark)!r}, 'w')"),
        "pathlib": {"weights": [Evil(Path, str(mark))]},
        "Popen": {"a": {"b": (1, Evil(subprocess.Popen, touch))}},
        "Evil": Evil(Evil, 1),
    }
    for i, (names, value) in enumerate(programs.items()):
        path, program = tmp_path / f"{i}.bin", pickle.dumps(value, protocol)
        if container == "zip":
            zipped(path, program, {})
        else:
            path.write_bytes(program)
        with pytest.raises(CheckpointError) as error:
            read_pickle(path)
        if container == "zip" or protocol:
            assert re.search(f"wants .*({names}).* nothing was run", str(error.value))
        assert "\n" not in str(error.value)
    assert not mark.exists()


def test_a_pickle_cannot_fill_the_memory(tmp_path: Path) -> None:
    bomb = b"\x80\x02}r" + struct.pack("<I", 1 << 30) + b"."
    with pytest.raises(CheckpointError, match="memo"):
        read_pickle(zipped(tmp_path / "b.bin", bomb, {}))
    with pytest.raises(CheckpointError, match="instruction NEWOBJ"):
        class_call = b"\x80\x02ccollections\nOrderedDict\n)\x81."
        read_pickle(zipped(tmp_path / "n.bin", class_call, {}))
