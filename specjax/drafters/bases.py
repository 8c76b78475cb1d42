"""What is the same in many drafters: those without a state, and those that remember one feature."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from specjax.core.sharding import constrain
from specjax.core.types import Array, Kept, Proposal
from specjax.drafters.base import Context
from specjax.drafters.spec import Spec
from specjax.models.target import Target


class Stateless(Spec):
    """A spec, and the drafter that it is bound to: its guesses follow from the text alone.

    A subclass is a `pytree` with a static field ``num_draft``, and says ``guess`` for one row (or
    ``propose`` for all of them).
    """

    kind: ClassVar[Any] = "one_hot"
    taps: ClassVar[Any] = ()

    def guess(self, tokens: Array, length: Array) -> Array:
        """``tokens`` [S] int32, of which ``length`` [] are committed -> guesses [K] int32.

        -1 is no guess.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither guess() nor propose().")

    def bind(self, target: Target, kind: str) -> Any:
        del target, kind
        return self

    def init(self, rows: int, slots: int) -> Any:
        del rows, slots
        return ()

    def prefill(self, state: Any, tokens: Array, count: Array, features: Array | None) -> Any:
        del tokens, count, features
        return state

    def propose(self, state: Any, context: Context) -> tuple[Proposal, Any]:
        guesses = jax.vmap(self.guess)(context.tokens, context.length)
        return Proposal(tokens=guesses, q=None), state

    def update(self, held: Any, kept: Kept) -> Any:
        del kept
        return held

    def grow(self, state: Any, slots: int) -> Any:
        del slots
        return state


class LastFeatures:
    """A bound drafter whose state is what it tapped of the last committed token but the pending.

    The state is [B, F], zeros behind a text of one token. A subclass is a `pytree` with ``taps``,
    ``num_draft`` and ``kind``, says ``propose``, and how wide the state is and of which dtype.
    """

    @property
    def features(self) -> tuple[int, Any]:
        """F, the sum of the widths of its taps, and the dtype of the state."""
        raise NotImplementedError(f"{type(self).__name__} lacks features: (width, dtype).")

    def init(self, rows: int, slots: int) -> Array:
        del slots
        width, dtype = self.features
        return constrain(jnp.zeros((rows, width), dtype), "batch", None)

    def prefill(self, state: Array, tokens: Array, count: Array, features: Array | None) -> Array:
        del tokens
        return last_features(state, count, features)

    def update(self, held: Array, kept: Kept) -> Array:
        return last_features(held, kept.count, kept.features)

    def cut(self, state: Array, length: Array) -> Array:
        # Tokens that follow bring features of their own; behind none there are none.
        return constrain(jnp.where((length > 0)[:, None], state, 0), "batch", None)

    def grow(self, state: Array, slots: int) -> Array:
        del slots
        return state


def last_features(old: Array, count: Array, features: Array | None) -> Array:
    """Row ``count - 1`` [B] of ``features`` [B, T, F]; where count is 0, ``old`` [B, F]."""
    assert features is not None
    last = jnp.take_along_axis(features, jnp.maximum(count - 1, 0)[:, None, None], axis=1)[:, 0]
    kept = jnp.where((count > 0)[:, None], last.astype(old.dtype), old)
    return constrain(kept, "batch", None)
