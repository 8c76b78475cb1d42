"""Training a head for further tokens: `pair_objective`, through the target's own head.

As the head's layer may be of any family, the steps of a column are one growing block to it: pairs
of earlier steps stand before, and each query sees those of the first step up to its own and of the
later ones its column.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.cache import Block
from specjax.core.cache.block import join
from specjax.core.sharding import constrain
from specjax.core.types import Array
from specjax.core.view import View, causal
from specjax.drafters.mtp.net import MTPNet
from specjax.drafters.pair_objective import PairObjective, ahead
from specjax.models.frozen import Frozen
from specjax.train.objectives.base import Batch


@dataclasses.dataclass(frozen=True, eq=False)
class MTPObjective(PairObjective):
    """See `PairObjective`. The target's embedding and head are not trained."""

    num_draft: int = 3  # J, steps

    def fuse(self, net: MTPNet, features: Array) -> Array:
        return features.astype(net.dtype)

    def head(self, net: MTPNet, target: Frozen, normed: Array) -> Array:
        del net
        return target.head(normed)

    def unroll(self, net: MTPNet, batch: Batch, fused: Array, target: Frozen) -> Array:
        tokens = constrain(batch.tokens, "batch", None)
        rows, width = tokens.shape
        place = jnp.arange(width)
        # The zeros that stand in for a feature in column 0 are seen by themselves alone.
        standin = (place == 0)[None, None, :]
        first = causal(width) & (~standin | (place == 0)[None, :, None])
        later, column = causal(width) & ~standin, jnp.eye(width, dtype=bool)[None]
        cache = net.init_cache(rows, 0)
        x = jnp.pad(fused, ((0, 0), (1, 0), (0, 0)))[:, :-1]

        @jax.checkpoint
        def step(x: Array, tokens: Array, view: View, before: Block | None) -> Any:
            return net(x, target.vocabulary.embed(tokens), cache, view, before)

        states: list[Array] = []
        before: Block | None = None
        for j in range(self.num_draft):
            seen = [first] if j == 0 else [later, *[column] * j]
            depth = jnp.concatenate([place[None] - 1 + i for i in range(j + 1)], axis=1)
            view = View(depth, jnp.concatenate(seen, axis=-1))
            x, normed, new = step(x, ahead(tokens, j), view, before)
            before = new if before is None else (join(before[0], new[0]),)
            states.append(normed)
        return jnp.stack(states)
