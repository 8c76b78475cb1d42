"""Training EAGLE-3 by training-time test (Li et al. 2025, arXiv:2503.01840): `pair_objective`.

What a step sees of its own column is a diagonal: with grouped queries those scores are elementwise
products, and no [J T, J T] mask is ever made.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.cache import Block, Cache, Part
from specjax.core.types import Array, pytree
from specjax.core.view import View
from specjax.drafters.eagle3.net import Eagle3Net
from specjax.drafters.pair_objective import PairObjective, standins
from specjax.models.frozen import Frozen
from specjax.train.objectives.base import Batch


@dataclasses.dataclass(frozen=True, eq=False)
class Eagle3Objective(PairObjective):
    """See `PairObjective`."""

    def fuse(self, net: Eagle3Net, features: Array) -> Array:
        return net.fuse(features)

    def head(self, net: Eagle3Net, target: Frozen, normed: Array) -> Array:
        return net.head(normed, target.vocabulary)

    def read(
        self, net: Eagle3Net, target: Frozen, step: int, x: Array, tokens: Array, *seen: Any
    ) -> tuple[Array, Array, Block]:
        del step
        if net.config.own_embedding:
            embedded = jax.lax.stop_gradient(net.embed_tokens(tokens))
        else:
            embedded = target.vocabulary.embed(tokens)
        return net(x, embedded, *seen)

    def seen(
        self, net: Eagle3Net, batch: Batch, past: tuple[Block, ...]
    ) -> tuple[Cache, View, Block | None]:
        if not past or net.config.latent is not None:
            return super().seen(net, batch, past)
        parts = zip(*past, strict=True)
        columns = tuple(Columns(first, tuple(own)) for first, *own in parts)
        view = View(batch.positions - 1 + len(past), standins(batch)[1])
        return Cache(columns, jnp.zeros(batch.length.shape, jnp.int32)), view, None


@pytree
class Columns:
    """An entry of grouped keys and values: a pass over the text, and those behind it."""

    first: Part  # of the pass that is seen by the view
    own: tuple[Part, ...]  # of later passes, each seen by its own column alone

    def attend(
        self,
        q: Array,
        new: Part,
        length: Array,
        view: View,
        *,
        scale: float | None = None,
        sinks: Array | None = None,
    ) -> Array:
        """As `Full.attend`; the pass ``new`` is the last of those seen by their columns."""
        del length
        assert scale is None and sinks is None
        rows, heads, width, size = q.shape
        groups = new[0].shape[1]
        q = q.reshape(rows, groups, heads // groups, width, size)
        column_k = jnp.stack([*(k for k, _ in self.own), new[0]], axis=2)  # [B, G, J, T, H]
        column_v = jnp.stack([*(v for _, v in self.own), new[1]], axis=2)
        dots = lambda form, k: jnp.einsum(form, q, k, preferred_element_type=jnp.float32)
        scores = dots("bgrth,bgsh->bgrts", self.first[0])
        scores = jnp.where(view.visible[:, None, None], scores, -jnp.inf)
        scores = jnp.concatenate([scores, dots("bgrth,bgjth->bgrtj", column_k)], axis=-1)
        weights = jax.nn.softmax(scores * jnp.float32(size**-0.5)).astype(column_v.dtype)
        weigh = lambda form, w, v: jnp.einsum(form, w, v, preferred_element_type=jnp.float32)
        out = weigh("bgrts,bgsh->bgrth", weights[..., :width], self.first[1])
        out = out + weigh("bgrtj,bgjth->bgrth", weights[..., width:], column_v)
        return out.reshape(rows, heads, width, size).astype(q.dtype)


OBJECTIVE = Eagle3Objective
