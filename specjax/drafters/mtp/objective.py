"""Training heads for further tokens: `pair_objective`, through the target's own head."""

from __future__ import annotations

import dataclasses
from typing import Any

from specjax.core.cache import Block
from specjax.core.types import Array
from specjax.drafters.mtp.net import MTPNet
from specjax.drafters.pair_objective import PairObjective
from specjax.models.frozen import Frozen


@dataclasses.dataclass(frozen=True, eq=False)
class MTPObjective(PairObjective):
    """See `PairObjective`. The target's embedding and head are not trained."""

    num_draft: int = 3  # J, steps

    def fuse(self, net: MTPNet, features: Array) -> Array:
        return features.astype(net.dtype)

    def head(self, net: MTPNet, target: Frozen, normed: Array) -> Array:
        del net
        return target.head(normed)

    def read(
        self, net: MTPNet, target: Frozen, step: int, x: Array, tokens: Array, *seen: Any
    ) -> tuple[Array, Array, Block]:
        embedded = target.vocabulary.embed(tokens)
        return net(x, embedded, *seen, head=min(step, net.config.heads - 1))

    def heads(self, net: MTPNet) -> int:
        return net.config.heads
