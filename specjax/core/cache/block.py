"""What a forward pass leaves to commit: for each layer the arrays that its entry takes in.

In every array of a block, as in every entry with slots, tokens are the second axis from the end.
Joining, widening and taking a path are therefore written once, for all kinds of layers.
"""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp

from specjax.core.ops import Write, write_all, writes_at_once
from specjax.core.platform import Platform
from specjax.core.types import Array

Part = tuple[Array, ...]  # of one layer: arrays [B, .., T, .]
Block = tuple[Part, ...]  # of all layers


def num_tokens(block: Block) -> int:
    """T of a block."""
    return block[0][0].shape[-2]


def join(before: Any, new: Any) -> Any:
    """Blocks, or parts of them, one behind the other; ``before`` may be None."""
    if before is None:
        return new
    return jax.tree.map(lambda old, x: jnp.concatenate([old, x], axis=-2), before, new)


def widen(block: Block, size: int) -> Block:
    """The same tokens with room for ``size`` in all."""

    def one(x: Array) -> Array:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, size - x.shape[-2]), (0, 0)])

    found: Block = jax.tree.map(one, block)
    return found


def tokens_first(block: Any) -> Any:
    """The same with tokens behind rows, [B, T, .., C], as projections have them."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, -2, 1), block)


def tokens_last(block: Any) -> Any:
    """What `tokens_first` was given."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, -2), block)


def put(block: Block, new: Block, place: Array, platform: Platform | None = None) -> Block:
    """Writes the tokens of ``new`` from ``place`` [] on."""
    (olds, structure), more = jax.tree.flatten(block), jax.tree.leaves(new)
    alone = jax.sharding.get_abstract_mesh().size <= 1  # else heads may be split
    if alone and all(x.ndim == 4 for x in olds) and writes_at_once(platform):
        start = jnp.broadcast_to(place, olds[0].shape[:1])
        writes = [Write(old, x, start) for old, x in zip(olds, more, strict=True)]
        found = write_all(writes, platform=platform)
    else:
        one = jax.lax.dynamic_update_slice_in_dim
        found = [one(old, x, place, old.ndim - 2) for old, x in zip(olds, more, strict=True)]
    return cast(Block, jax.tree.unflatten(structure, found))


def drop_first(block: Block, drop: Array) -> Block:
    """Moves the tokens of a row forward by one where ``drop`` [B]; the last place is stale."""

    def one(x: Array) -> Array:
        wide = drop.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(wide, jnp.roll(x, -1, axis=-2), x)

    found: Block = jax.tree.map(one, block)
    return found


def take(x: Array, places: Array) -> Array:
    """Tokens ``places`` [B, M] of ``x`` [B, .., T, C], in that order."""
    found: Array = jax.vmap(lambda x, places: x[..., places, :])(x, places)
    return found
