"""What a trained drafter is asked for: the laws of an objective.

An objective is pure. It computes a *sum* of losses and the sum of their weights, so that the step
can add both over micro-batches and shards of data and divide once: a mean of means would count the
positions of short texts for more.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from specjax.core.types import Array, pytree
from specjax.core.view import Ranges, View
from specjax.models.frozen import Frozen
from specjax.train import step
from specjax.train.state import Params, Skeleton


@pytree
class Batch:
    """Texts to train on, a row each or several a row, one behind the other (`data.packing`)."""

    tokens: Array  # [B, T] int32, right-padded
    supervised: Array  # [B, T] bool: token t may be a label (it belongs to a response)
    length: Array  # [B] int32, valid tokens, of all texts of a row
    # [B, T] int32: where in the row the text of token t begins; None: each row is one text. What is
    # behind the texts counts as one more.
    begin: Array | None = None

    @property
    def positions(self) -> Array:
        """[B or 1, T] int32: of each token in its text."""
        place = jnp.arange(self.tokens.shape[1], dtype=jnp.int32)[None, :]
        return place if self.begin is None else place - self.begin

    @property
    def view(self) -> View:
        """What a pass over the rows is given: a token sees its own text up to itself."""
        return View.over(self.positions, self.ranges)

    @property
    def ranges(self) -> Ranges:
        """Where in the row begins and ends what each token sees."""
        place = jnp.arange(self.tokens.shape[1], dtype=jnp.int32)[None, :]
        return Ranges(place - self.positions, place + 1)

    @property
    def counts(self) -> dict[str, Array]:
        """How many ``tokens`` of texts there are, and how many ``texts``, [] int32."""
        place = jnp.arange(self.tokens.shape[1])[None, :]
        first = (self.positions == 0) & (place < self.length[:, None])
        return {"tokens": self.length.sum(), "texts": first.sum(dtype=jnp.int32)}


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


def counting(objective: Objective) -> step.Objective:
    """The same with `Batch.counts` among its sums, by which `loop` tells how fast it goes."""

    def counted(
        params: Params, batch: Batch, target: Frozen, key: Array
    ) -> tuple[Array, Array, dict[str, Array]]:
        loss, weight, sums = objective(params, batch, target, key)
        return loss, weight, {**sums, **batch.counts}

    return counted


@dataclasses.dataclass(frozen=True, eq=False)
class BaseObjective:
    """What an objective is made of. A subclass is a dataclass too, its fields hyperparameters.

    Attributes:
      skeleton: of the drafter's network, see `net`.
      config: of the network.
      compute_dtype: of the passes; masters are float32.
      target_ids: [V_draft] int32 of a reduced vocabulary; None: it is the target's.
      num_draft: K, guesses of a cycle.
      unpacked: why it takes one text a row alone; "": it keeps a row's texts apart (`Batch.begin`).
    """

    unpacked: ClassVar[str] = (
        'it does not say that it keeps the texts of a row apart, unpacked = ""'
    )

    skeleton: Skeleton
    config: Any
    compute_dtype: Any = jnp.bfloat16
    target_ids: Any = None
    num_draft: int = 1

    def net(self, params: Params) -> Any:
        """The network's module with these weights, in the type of the passes."""
        return self.skeleton.module(params, self.compute_dtype)


def ahead(x: Array, by: int, begin: Array | None = None) -> Array:
    """``x`` [B, T, ..] with what comes ``by`` later in place t; zeros behind the end of a text.

    ``begin`` is that of the `Batch`; None: a row is one text.
    """
    pad = lambda x: jnp.pad(x, [(0, 0), (0, by)] + [(0, 0)] * (x.ndim - 2))[:, by:]
    later = pad(x)
    if begin is None or not by:
        return later
    # Counted from 1, so that what is behind the row is no text's.
    own = pad(begin + 1) == begin + 1
    return jnp.where(own.reshape(*own.shape, *[1] * (x.ndim - 2)), later, jnp.zeros_like(later))


def states_before(features: Array, begin: Array | None = None) -> Array:
    """``features`` [B, T, F] of texts -> [B, T, F]: with token t pending, those of token t - 1.

    Zeros at first of every text (``begin`` as for `ahead`), and without a gradient: what a drafter
    knows of the text in a cycle.
    """
    return shifted(jax.lax.stop_gradient(features), begin)


def shifted(x: Array, begin: Array | None = None) -> Array:
    """``x`` [B, T, F] with that of token t - 1 in place t; zeros at the begin of every text."""
    x = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    if begin is None:
        return x
    first = jnp.arange(x.shape[1])[None, :] == begin
    return jnp.where(first[..., None], jnp.zeros_like(x), x)


def stack_ahead(x: Array, num: int, begin: Array | None = None) -> Array:
    """``x`` [B, T] -> [B, T, num], the places t + 1, t + 2, ..; zeros behind the end of a text.

    ``begin`` as for `ahead`.
    """
    return jnp.stack([ahead(x, 1 + i, begin) for i in range(num)], axis=-1)


def valid(batch: Batch) -> Array:
    """[B, T] bool: the tokens that may be labels."""
    place = jnp.arange(batch.tokens.shape[1])[None, :]
    return batch.supervised & (place < batch.length[:, None])


def labelled(batch: Batch, num: int) -> Array:
    """[B, T, num] bool: whether guess i, with token t pending, answers for a supervised token."""
    return stack_ahead(valid(batch), num, batch.begin)
