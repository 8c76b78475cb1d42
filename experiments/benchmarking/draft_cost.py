"""Trained drafters at realistic sizes, with random weights: what their cycle reads, at the least.

Cycles have static shapes: their time does not depend on what is accepted. A cycle is timed once,
and for any tau that one assumes, speed follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx

from specjax.drafters import DFlash, Eagle3

DRAFT_VOCABULARY = 32_000  # of the published EAGLE-3 drafters


def dflash(target: Any) -> DFlash:
    """Blocks of 16, 5 layers of the target's own sizes, 5 taps (the published 8B drafters)."""
    taps = min(5, target.config.num_layers)
    return DFlash.fresh(target, num_draft=15, layers=5, num_taps=taps)


def eagle3(target: Any) -> Eagle3:
    """5 steps, one layer of the target's own sizes, a reduced head."""
    ids = np.arange(min(DRAFT_VOCABULARY, target.config.vocab_size))
    return Eagle3.fresh(target, num_draft=5, target_ids=ids)


DRAFTERS: dict[str, Callable[[Any], Any]] = {"dflash": dflash, "eagle3": eagle3}


def draft_bytes(spec: Any, target: Any) -> int:
    """Bytes of weights that one cycle's drafting reads, where each pass reads its own once.

    DFlash: the network and the target's head, once.
    EAGLE-3: the fusion of taps once, all else at every step; its head is its own.
    """
    steps = spec.passes(spec.num_draft)
    total = 0
    for path, param in nnx.to_flat_state(spec.net.params):
        if path[0] != "embed_tokens":  # a few rows of it
            total += _bytes(param.get_value()) * (1 if path[0] == "fc" else steps)
    if isinstance(spec, DFlash):
        total += _bytes(target.net.vocabulary.output)
    return total


def _bytes(x: Any) -> int:
    """Bytes of an array, or of its shape alone."""
    return int(x.size * x.dtype.itemsize)


def ideal_share(target_bytes: float, drafting_bytes: float) -> float:
    """Speedup over tau where reading weights is all that takes time: plain step over cycle."""
    return target_bytes / (target_bytes + drafting_bytes)
