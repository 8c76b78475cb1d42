"""A checkpoint of random weights on disk: as many bytes as a real one, quickly written."""

from __future__ import annotations

import concurrent.futures
import json
import math
import os
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from specjax.checkpoint.laid import place_of
from specjax.checkpoint.reading import THREADS
from specjax.checkpoint.safetensors_reader import INDEX
from specjax.models import family as registered

_SHARD = 5 << 30  # bytes of a file, as hubs have them
_BLOCK = 32 << 20  # bytes of random numbers, again and again
_PIECE = 8 << 20


def write_random(raw: Mapping[str, Any], directory: Path) -> int:
    """Writes config.json and weights in bfloat16; how many bytes these have.

    Raises:
      ValueError: if a parameter of this family is not one tensor.
      OSError: if they cannot be written.
    """
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({**raw, "torch_dtype": "bfloat16"}))
    rng = np.random.default_rng(0)
    block = (0.02 * rng.standard_normal(_BLOCK // 2, np.float32)).astype(jnp.bfloat16)
    weight_map, total = dict[str, str](), 0
    for number, shard in enumerate(_shards(tensors_of(raw)), 1):
        name = f"model-{number:05d}.safetensors"
        _write_shard(directory / name, shard, block.tobytes())
        weight_map |= dict.fromkeys(shard, name)
        total += sum(map(_size, shard.values()))
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return total


def tensors_of(raw: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a checkpoint. Raises ValueError as `write_random`."""
    family = registered(raw["model_type"])
    config = family.read_config(raw)
    abstract = nnx.eval_shape(lambda: family(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    found = {}
    for path, parameter in nnx.to_flat_state(nnx.state(abstract)):
        name = place_of(family, config, ".".join(map(str, path)))
        if not isinstance(name, str):
            raise ValueError(f"{raw['model_type']}: {name} is no tensor as it is.")
        found[name] = parameter.get_value().shape
    return found


def _shards(tensors: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    for name, shape in tensors.items():
        if shard and sum(map(_size, shard.values())) + _size(shape) > _SHARD:
            yield shard
            shard = {}
        shard[name] = shape
    yield shard


def _size(shape: tuple[int, ...]) -> int:
    return 2 * math.prod(shape)


def _write_shard(path: Path, tensors: Mapping[str, tuple[int, ...]], block: bytes) -> None:
    header, at = {}, 0
    for name, shape in tensors.items():
        spans = [at, at + _size(shape)]
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": spans}
        at += _size(shape)
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        while at:
            at -= file.write(block[:at])
        file.flush()
        os.fsync(file.fileno())


def forget(directory: Path) -> None:
    """Takes its files out of the system's memory, so that the next reader meets the disk."""
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_bandwidth(directory: Path) -> float:
    """Bytes a second that threads read of its files, whatever memory holds of them."""
    files = [(path, path.stat().st_size) for path in directory.glob("*.safetensors")]

    def read(path: Path, at: int) -> int:
        with path.open("rb", buffering=0) as file:
            return len(os.pread(file.fileno(), _PIECE, at))

    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        pieces = [pool.submit(read, path, at) for path, n in files for at in range(0, n, _PIECE)]
        total = sum(piece.result() for piece in pieces)
    return total / (time.perf_counter() - begin)
