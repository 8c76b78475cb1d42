"""Random keys: never carried along, never consumed twice, only derived.

A draw is determined by the row's seed, the absolute position it belongs to, and its role:
``fold_in(fold_in(row_key, position), role)``. What a row writes therefore does not depend on its
neighbours, on its place in the batch or on how many cycles one device call runs.

Drafts are keyed by the position at which their *cycle* starts, and then by their index, not by
their own position: a guess behind the first rejection may be drawn again in the next cycle, and
under block verification it had a say in the verdict of the first. Drawn with the same noise, the
second draw would not be independent of what is already committed, and the text would be biased.
Only coupled drafts are keyed by their own position: sharing that noise is the method, and the
target's own token at that position uses it too.
"""

from __future__ import annotations

import jax

from specjax.core.types import Array

DRAFT, ACCEPT, RESIDUAL, NOISE = range(4)


@jax.jit
def row_keys(seeds: Array) -> Array:
    """Seeds [B] -> keys [B]."""
    return jax.vmap(jax.random.key)(seeds)


def at(key: Array, position: Array, role: int) -> Array:
    """The key for one ``role`` at an absolute ``position``, of one row; vmap for more."""
    return jax.random.fold_in(jax.random.fold_in(key, position), role)
