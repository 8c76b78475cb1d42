"""What a trained drafter is asked for: the laws of an objective.

An objective is pure. It computes a *sum* of losses and the sum of their weights, so that the step
can add both over micro-batches and shards of data and divide once: a mean of means would count the
positions of short texts for more.
"""

from __future__ import annotations

from typing import Protocol

from specjax.core.types import Array, pytree
from specjax.models.frozen import Frozen
from specjax.train.lm import Params


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
          params: float32 masters, see `lm.Skeleton`.
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
