"""How much of a forward pass is kept until the backward pass: what there is room for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from specjax.core import hosts
from specjax.core.types import Array

# Bytes, where a device does not tell its memory, as CPUs do not; there logits are best near.
_KEPT, _LOGITS = 4 << 30, 32 << 20


def check_remat(remat: str, parts: str) -> None:
    """Raises ValueError unless it is auto, none or ``parts``: what may be computed again."""
    if remat not in ("auto", "none", parts):
        raise ValueError(f"remat={remat!r} is unknown (auto, none, {parts}).")


def room() -> int:
    """Bytes a device that may be kept: a quarter of its memory, or 4 GiB where it does not say.

    The rest is for weights, moments, gradients and what a step needs for a while.
    """
    return _memory() // 4 or _KEPT


def logits_room() -> int:
    """Bytes a device that logits in float32 may take: a 128th of its memory, or 32 MiB.

    A loss has several arrays of their size; a head is read once for as many.
    """
    return _memory() // 128 or _LOGITS


@functools.cache  # processes ask each other equally often
def _memory() -> int:
    """Of the smallest device of process 0, for all: they compile the same; 0: it does not say."""
    limits = lambda: [(d.memory_stats() or {}).get("bytes_limit", 0) for d in jax.local_devices()]
    least: int = hosts.from_first("memory of a device", lambda: min(limits(), default=0))
    return least


def kept_bytes(function: Callable[..., Any], *args: Any) -> int:
    """Bytes that ``function(*args)`` keeps for its backward pass; nothing is computed.

    Weights that it reads are among them.
    """
    kept = jax.eval_shape(lambda *args: jax.vjp(function, *args)[1], *args)
    leaves: list[Array] = jax.tree.leaves(kept)
    return sum(x.size * x.dtype.itemsize for x in leaves)
