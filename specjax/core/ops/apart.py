"""The input of a product that must not be merged with others of the same input."""

from __future__ import annotations

import jax

from specjax.core.ops.op import Op
from specjax.core.platform import Platform
from specjax.core.types import Array


def same(x: Array) -> Array:
    """``x``."""
    return x


def behind_a_barrier(x: Array) -> Array:
    """Another array to the compiler, with the same numbers."""
    found: Array = jax.lax.optimization_barrier(x)
    return found


APART = Op(same, {"gpu": behind_a_barrier})


def apart(x: Array, *, platform: Platform | None = None) -> Array:
    """``x`` for a further product with a large weight.

    XLA's GPU compiler makes one product of several that share an input of some rows. To do so it
    puts their weights together, a copy of all of them in every pass: in Qwen3.5-27B, each by
    itself, 169 MB read and written a layer, a quarter of what a cycle reads. Weights of one layer
    are joined when they are loaded (`models.joining`); those of several layers are not.
    """
    found: Array = APART.on(platform)(x)
    return found
