"""Training EAGLE-3 by training-time test (Li et al. 2025, arXiv:2503.01840): `pair_objective`.

What a step sees of its own column is a diagonal: those scores are elementwise products, and no
[J T, J T] mask is ever made.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.cache import Block
from specjax.core.ops import attend
from specjax.core.sharding import constrain
from specjax.core.types import Array
from specjax.core.view import causal
from specjax.drafters.eagle3.net import Eagle3Net
from specjax.drafters.pair_objective import PairObjective, ahead
from specjax.models.frozen import Frozen
from specjax.models.layers.attention import Look
from specjax.train.objectives.base import Batch


@dataclasses.dataclass(frozen=True, eq=False)
class Eagle3Objective(PairObjective):
    """See `PairObjective`."""

    def fuse(self, net: Eagle3Net, features: Array) -> Array:
        return net.fuse(features)

    def head(self, net: Eagle3Net, target: Frozen, normed: Array) -> Array:
        del target
        return net.head(normed)

    def unroll(self, net: Eagle3Net, batch: Batch, fused: Array, target: Frozen) -> Array:
        """The normed states of every step and column, [J, B, T, D].

        Args:
          fused: [B, T, D], g of every token.
        """
        tokens = constrain(batch.tokens, "batch", None)
        rows, width = tokens.shape
        positions = jnp.broadcast_to(jnp.arange(width)[None, :], (rows, width)) - 1
        # The zeros that stand in for a feature in column 0 are seen by themselves alone.
        standin = (jnp.arange(width) == 0)[None, None, :]
        visible = causal(width)
        x = jnp.pad(fused, ((0, 0), (1, 0), (0, 0)))[:, :-1]

        @jax.checkpoint
        def step(x: Array, tokens: Array, j: Array, past: tuple[Block, ...]) -> Any:
            if net.config.own_embedding:
                embedded = jax.lax.stop_gradient(net.embed_tokens(tokens))
            else:
                embedded = target.vocabulary.embed(tokens)
            if past:
                look = looking_along(past[0], past[1:], visible & ~standin)
            else:
                look = looking_at(visible & (~standin | (jnp.arange(width) == 0)[None, :, None]))
            return net(x, embedded, positions + j, look)

        states: list[Array] = []
        past: tuple[Block, ...] = ()
        for j in range(self.num_draft):
            x, normed, block = step(x, ahead(tokens, j), jnp.int32(j), past)
            states, past = [*states, normed], (*past, block)
        return jnp.stack(states)


def looking_at(visible: Array) -> Look:
    """Queries see the tokens of the pass itself, by ``visible`` [1, T, T]."""
    return lambda layer, q, k, v: attend(q, k, v, visible, None)


def looking_along(first: Block, own: tuple[Block, ...], visible: Array) -> Look:
    """Queries see the pass ``first`` by ``visible`` [1, T, T], and their column of each later one.

    ``own`` are the passes between the first and this one.
    """

    def look(layer: int, q: Array, k: Array, v: Array) -> Array:
        rows, heads, width, size = q.shape
        groups = k.shape[1]
        q = q.reshape(rows, groups, heads // groups, width, size)
        column_k = jnp.stack([*(block[layer][0] for block in own), k], axis=2)  # [B, G, J, T, H]
        column_v = jnp.stack([*(block[layer][1] for block in own), v], axis=2)
        dots = lambda form, k: jnp.einsum(form, q, k, preferred_element_type=jnp.float32)
        scores = dots("bgrth,bgsh->bgrts", first[layer][0])
        scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
        scores = jnp.concatenate([scores, dots("bgrth,bgjth->bgrtj", column_k)], axis=-1)
        weights = jax.nn.softmax(scores * jnp.float32(size**-0.5)).astype(v.dtype)
        weigh = lambda form, w, v: jnp.einsum(form, w, v, preferred_element_type=jnp.float32)
        out = weigh("bgrts,bgsh->bgrth", weights[..., :width], first[layer][1])
        out = out + weigh("bgrtj,bgjth->bgrth", weights[..., width:], column_v)
        return out.reshape(rows, heads, width, size).astype(q.dtype)

    return look


OBJECTIVE = Eagle3Objective
