"""How much of a forward pass is kept until the backward pass: what there is room for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from specjax.core.types import Array

REMAT = ("auto", "none", "blocks")
_UNKNOWN = 4 << 30  # bytes, where a device does not tell its memory


def check_remat(remat: str) -> None:
    """Raises ValueError unless it is one of `REMAT`."""
    if remat not in REMAT:
        raise ValueError(f"remat={remat!r} is unknown ({', '.join(REMAT)}).")


def room() -> int:
    """Bytes a device that may be kept: a quarter of its memory, or 4 GiB where it does not say.

    The rest is for weights, moments, gradients and what a step needs for a while.
    """
    limits = [(d.memory_stats() or {}).get("bytes_limit", 0) for d in jax.local_devices()]
    least = min(limits, default=0)
    return least // 4 if least else _UNKNOWN


def kept_bytes(function: Callable[..., Any], *args: Any) -> int:
    """Bytes that ``function(*args)`` keeps for its backward pass; nothing is computed.

    Weights that it reads are among them.
    """
    kept = jax.eval_shape(lambda *args: jax.vjp(function, *args)[1], *args)
    leaves: list[Array] = jax.tree.leaves(kept)
    return sum(x.size * x.dtype.itemsize for x in leaves)
