"""Training EAGLE-3 by training-time test (Li et al. 2025, arXiv:2503.01840): `pair_objective`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from specjax.core.cache import Block
from specjax.core.types import Array
from specjax.drafters.eagle3.net import Eagle3Net
from specjax.drafters.pair_objective import PairObjective
from specjax.models.frozen import Frozen


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

    def tokens_through(self, weight: str, rows: int, length: int) -> int:
        """Tokens of ``rows`` texts that a step multiplies a weight of the network with."""
        return rows * length * (1 if weight.startswith("fc.") else self.num_draft)

    def head_work(self, rows: int, length: int) -> int:
        """Operations a weight of the target's head in a step: it teaches, and may be lent."""
        lent = 0 if self.config.own_head else 4 * self.num_draft
        return rows * length * (2 + lent)


OBJECTIVE = Eagle3Objective
