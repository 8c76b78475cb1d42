"""Keys and values that a cache rounds: compared in steps of the numbers that they are kept as.

Rounding is not continuous. Passes of different widths sum in different orders, so that a number
that lies between two steps may come to lie on either; it is one step off then, and few are. In the
layers behind, inputs differ already, and only their outputs are compared, to what that makes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core.cache import Cache, Rounded
from specjax.core.types import Array

# Of the outputs of layers, a share of the largest value: what a step in some numbers makes of them,
# measured on small random models (float32, 3 seeds a family: at most 4e-4 and 2.4e-2).
TOLERANCES = {"int8": 1e-2, "fp8": 0.1}
STEPS = 1.01  # the factor of a row differs in its last bits, too
SHARE, FEW = 0.01, 2  # of the numbers of a row's text in the first layer that differs, and so many


@dataclasses.dataclass(frozen=True)
class Steps:
    """Of one row of one layer's entry, against one pass over the text."""

    layer: int
    row: int
    largest: float  # in steps
    count: int  # numbers that are another
    numbers: int

    @property
    def too_far(self) -> bool:
        return self.largest > STEPS or self.count > FEW + SHARE * self.numbers


def steps_of(net: Any, cache: Cache, texts: Sequence[Sequence[int]], slots: int) -> list[Steps]:
    """The first layer of each row that remembers other numbers than one pass over its text gives.

    Args:
      net: of the target.
      cache: what remembers ``texts``.
      texts: a row each.
      slots: room for the longest of them.
    """
    layers = [i for i, entry in enumerate(cache.layers) if isinstance(entry, Rounded)]
    if not layers:
        return []
    tokens = np.zeros((len(texts), slots), np.int32)
    for line, text in zip(tokens, texts):
        line[: len(text)] = text
    far, counts = map(np.asarray, _far(net, cache.grow(slots), jnp.asarray(tokens)))
    found = []
    for row, text in enumerate(texts):
        for n, layer in enumerate(layers):
            if counts[n, row] or not np.isfinite(far[n, row]):
                shape = cache.layers[layer].keys.shape, cache.layers[layer].values.shape
                numbers = len(text) * sum(s[1] * s[3] for s in shape)
                found.append(Steps(layer, row, float(far[n, row]), int(counts[n, row]), numbers))
                break
    return found


@jax.jit
def _far(net: Any, cache: Cache, tokens: Array) -> tuple[Array, Array]:
    """[L, B] of entries that round: the largest difference in steps, and numbers that differ."""
    here = (jnp.arange(tokens.shape[1])[None, :] < cache.length[:, None])[:, None, :, None]
    far, counts = [], []
    for entry, part in zip(cache.layers, net(tokens).block, strict=True):
        if isinstance(entry, Rounded):
            steps = jnp.where(here, entry.steps_from(part), 0.0)
            far.append(steps.max((1, 2, 3)))
            counts.append((steps > 0.5).sum((1, 2, 3), dtype=jnp.int32))
    return jnp.stack(far), jnp.stack(counts)


def told(kind: str, found: Sequence[Steps]) -> str:
    """What was seen, in words."""
    if not found:
        return f"; its keys and values, in {kind}, are the same to the last number"
    most, worst = max(s.largest for s in found), max(found, key=lambda s: s.count / s.numbers)
    return (
        f"; its keys and values, in {kind}, which other widths may round to the neighbour, are at "
        f"most {most:.2g} steps off, {worst.count} of {worst.numbers} of a text another, in the "
        f"first layer where any is (allowed: one step, {SHARE:.0%} of them and {FEW} more); behind "
        "it that is the number format's own inexactness"
    )
