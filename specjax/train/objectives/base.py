"""What a trained drafter is asked for: the laws of an objective.

An objective is pure. It computes a *sum* of losses and the sum of their weights, so that the step
can add both over micro-batches and shards of data and divide once: a mean of means would count the
positions of short texts for more.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from specjax.core.types import Array, pytree
from specjax.models.frozen import Frozen
from specjax.train.state import Params, Skeleton


@pytree
class Batch:
    """Texts to train on, a row each."""

    tokens: Array  # [B, T] int32, right-padded
    supervised: Array  # [B, T] bool: token t may be a label (it belongs to a response)
    length: Array  # [B] int32, valid tokens


class Objective(Protocol):
    """Made as ``KIND(skeleton=, config=, compute_dtype=, target_ids=, **hyperparameters)``.

    ``skeleton`` and ``config`` describe the drafter's network, ``target_ids`` its vocabulary where
    that is reduced. Hyperparameters are those of the run's ``objective`` section.
    """

    @property
    def num_draft(self) -> int:
        """K, guesses of a cycle."""
        ...

    def __call__(
        self, params: Params, batch: Batch, target: Frozen, key: Array
    ) -> tuple[Array, Array, dict[str, Array]]:
        """The loss of a batch.

        Args:
          params: float32 masters, see `state.Skeleton`.
          batch: B texts.
          target: the frozen target, run here; its features and logits are used at once.
          key: for anchors and the like; another one each step.

        Returns:
          The total loss (a sum), its weight (a sum, without gradient), and further sums for the
          log, which are divided by the same weight.
        """
        ...

    def matches(self, params: Params, batch: Batch, target: Frozen) -> Array:
        """[B, T, K] bool: with token t pending, whether guess i is ``tokens[t + 1 + i]``.

        The guesses before it are the text's own tokens. Replayed over a text that the target wrote
        greedily, from the end of the prompt and on by the accepted and one, this must give the
        cycles of real speculation (`train.replay`).
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class BaseObjective:
    """What an objective is made of. A subclass is a dataclass too, its fields hyperparameters.

    Attributes:
      skeleton: of the drafter's network, see `net`.
      config: of the network.
      compute_dtype: of the passes; masters are float32.
      target_ids: [V_draft] int32 of a reduced vocabulary; None: it is the target's.
      num_draft: K, guesses of a cycle.
    """

    skeleton: Skeleton
    config: Any
    compute_dtype: Any = jnp.bfloat16
    target_ids: Any = None
    num_draft: int = 1

    def net(self, params: Params) -> Any:
        """The network's module with these weights, in the type of the passes."""
        return self.skeleton.module(params, self.compute_dtype)


def states_before(features: Array) -> Array:
    """``features`` [B, T, F] of texts -> [B, T, F]: with token t pending, those of token t - 1.

    Zeros at first, and without a gradient: what a drafter knows of the text in a cycle.
    """
    return jnp.pad(jax.lax.stop_gradient(features), ((0, 0), (1, 0), (0, 0)))[:, :-1]


def stack_ahead(x: Array, num: int) -> Array:
    """``x`` [B, T] -> [B, T, num], the places t + 1, t + 2, ..; zeros behind the end."""
    width = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (0, num)))
    return jnp.stack([padded[:, 1 + i : 1 + i + width] for i in range(num)], axis=-1)


def labelled(batch: Batch, num: int) -> Array:
    """[B, T, num] bool: whether guess i, with token t pending, answers for a supervised token."""
    place = jnp.arange(batch.tokens.shape[1])[None, :]
    return stack_ahead(batch.supervised & (place < batch.length[:, None]), num)
