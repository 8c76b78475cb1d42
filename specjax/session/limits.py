"""What fits: numbers into the device's integers, guesses into the model, rows into memory.

Asked before anything is allocated, so that the answer is one line instead of a process that is
killed.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from specjax import decode
from specjax.checkpoint.load import Model
from specjax.core.cache import caches_in
from specjax.core.cache.base import num_bytes
from specjax.core.sharding import pieces, use_mesh
from specjax.session.slots import MIN_SLOTS, bucket

_known: dict[Any, int] = {}  # bytes of states that were asked for before, by all shapes


def check_guesses(target: Model, num_draft: int) -> None:
    """Raises ValueError if a block of ``num_draft`` guesses is longer than any text."""
    longest = target.config.max_position_embeddings
    if num_draft >= longest:
        raise ValueError(
            f"num_draft={num_draft}: the texts of {target.name} are limited to {longest} tokens; "
            f"guess at most {longest - 1} a cycle."
        )


def check_memory(
    target: Model,
    drafter: Any,
    lengths: Sequence[int],
    batch: int | None = None,
    *,
    held: int = 0,
    marked: bool = False,
) -> None:
    """Raises ValueError if the caches of a batch are larger than the memory that is free.

    Args:
      target: a `specjax.Model`.
      drafter: bound to it.
      lengths: how long each row's text may become, prompt included.
      batch: rows that are decoded together; None: all.
      held: bytes of a state that this one takes the place of.
      marked: whether what cannot be cut is there twice (`between.mark`).
    """
    rows = len(lengths) if batch is None else min(batch, len(lengths))
    if target.mesh is not None:
        rows += -rows % pieces("batch", target.mesh)
    slots, free = bucket(max(lengths) + drafter.num_draft + 1), free_memory(target.mesh)
    free = None if free is None else free + held
    if free is None:
        return
    needed = functools.partial(_needed, target, drafter, slots=slots, marked=marked)
    if needed(rows) <= free:
        return
    fit, k = math.floor(rows * free / needed(rows)), drafter.num_draft
    # What a guess adds is mostly its laws.
    fewer = k - math.ceil((needed(1) - free) / _laws(target, 1, 1))
    words = f"{rows} rows of up to {slots} tokens" + (f" with num_draft={k}" if k else "")
    if fit:
        todo = f"decode at most {fit} together"
    else:
        todo = f"guess about {fewer} a cycle at most" if fewer > 0 else "ask for shorter texts"
    raise ValueError(
        f"{words} need about {_gigabytes(needed(rows))} of memory beside the weights, and "
        f"{_gigabytes(free)} are free: {todo}."
    )


def free_memory(mesh: Any) -> int | None:
    """Bytes that can still be allocated where the target is; None if that cannot be known."""
    devices = [jax.devices()[0]] if mesh is None else list(mesh.local_devices)
    # Other processes are taken to have as much.
    share = 1 if mesh is None else mesh.devices.size // max(len(devices), 1)
    if not devices or devices[0].platform == "cpu":
        host = _host_memory()
        return None if host is None else host * share
    stats = [device.memory_stats() or {} for device in devices]
    if not all("bytes_limit" in s for s in stats):
        return None
    free: int | None = share * sum(s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats)
    return free


def _host_memory() -> int | None:
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:")]
        limit = Path("/sys/fs/cgroup/memory.max")  # of a container
        found += [int(limit.read_text())] if limit.is_file() else []
    except (OSError, ValueError, IndexError):  # "max": no limit
        pass
    if not found and hasattr(os, "sysconf"):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found, default=None)


def _needed(target: Model, drafter: Any, rows: int, *, slots: int, marked: bool = False) -> int:
    """Bytes of the state of ``rows`` rows as they grow to ``slots``, and of one block's laws."""
    leaves, structure = jax.tree.flatten((target.net, drafter))
    shapes = tuple((x.shape, x.dtype) for x in leaves)
    key = structure, shapes, target.mesh, rows, slots, marked
    if key not in _known:  # asked of every call: tracing takes longer than decoding a few tokens
        _known[key] = _traced(target, drafter, rows, slots, marked)
    return _known[key] + _laws(target, rows, drafter.num_draft + 1)


def _traced(target: Model, drafter: Any, rows: int, slots: int, marked: bool) -> int:
    """Bytes of the largest state on the way to ``slots``, by the shapes of its arrays."""

    def parts(state: decode.DecodeState) -> list[int]:
        """Bytes of each layer's memory, then of all the rest."""
        layers = [num_bytes(entry) for cache in caches_in(state) for entry in cache.layers]
        return [*layers, num_bytes(state) - sum(layers)]

    def state(slots: int) -> decode.DecodeState:
        shape = jax.ShapeDtypeStruct
        one = (shape((rows, slots), jnp.int32), shape((rows,), jnp.int32), shape((rows,), bool))
        init = functools.partial(decode.init_state, counts=None)
        with use_mesh(target.mesh):
            shapes: decode.DecodeState = jax.eval_shape(init, target.net, drafter, *one)
            return shapes

    # While a state grows, one part of that of half the size is still there (`between.grow`).
    before = max(parts(state(slots // 2))) if slots > MIN_SLOTS else 0
    final = state(slots)
    entries = [entry for cache in caches_in(final) for entry in cache.layers]
    twice = sum(num_bytes(entry) for entry in entries if marked and entry.loses(slots))
    return sum(parts(final)) + before + twice


def _laws(target: Model, rows: int, width: int) -> int:
    """Bytes of the logits of a block, the law that is drawn from, and the draft's."""
    return 3 * rows * width * target.config.vocab_size * 4


def _gigabytes(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
