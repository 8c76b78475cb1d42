"""DSpark (DeepSeek 2026, arXiv:2607.05147): a DFlash stack with a Markov head.

Slots are shifted: slot j guesses the token after its own position, so a block of K slots makes K
guesses. The logits of a slot get ``W_2 W_1[token before]`` added, and guesses are drawn from left
to right: their law is autoregressive and exact. With a Markov rank of 0 it is the "DFlash" of the
DeepSpec checkpoints.

A confidence head, where there is one, estimates the chance that each guess is accepted
(`Held.confidence`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.cache import Cache
from specjax.core.types import Array, Kept, Proposal, one_line, pytree
from specjax.drafters.base import Context, check_kind, check_min_confidence, doubling_widths
from specjax.drafters.dflash.drafter import (
    DFlashDrafter,
    fresh_config,
    fresh_net,
    parts,
    refuse,
)
from specjax.drafters.dflash.kind import DFlashKind
from specjax.drafters.drawing import count_guess, draw
from specjax.models.frozen import Frozen
from specjax.models.target import Target


@dataclasses.dataclass(frozen=True, eq=False)
class DSpark(DFlashKind):
    """A network with shifted slots as a drafter; attributes as in `DFlash`.

    ``kind`` says how guesses are drawn; None: what suits the temperature and the rule. With
    ``min_confidence`` no guess of a row is verified from the first one on whose chance of being
    accepted, by the confidence head, is below it.
    """

    net: Frozen
    num_draft: int | None = None
    kind: str | None = None
    target_ids: Array | None = None
    name: str = "dspark"
    min_confidence: float | None = None

    summary = "DFlash with shifted slots and a Markov head"
    __repr__ = one_line

    def bind(self, target: Target, kind: str) -> DSparkDrafter:
        """The drafter for ``target``. Raises ValueError if the two do not fit."""
        check_kind(self.kind)
        refuse(self.name, self.net.config, selector_rank="DFlash2")
        if self.target_ids is not None and self.net.config.markov_rank:
            raise ValueError(
                f"{self.name}: a Markov head over a reduced vocabulary is unsupported."
            )
        check_min_confidence(self.min_confidence)
        if self.min_confidence is None:
            return DSparkDrafter(*parts(self, target), self.kind or kind)
        if not self.net.config.confidence_head:
            raise ValueError(
                f"min_confidence={self.min_confidence}: {self.name} has no confidence head; leave "
                "it out, or use a checkpoint that has one."
            )
        least = jnp.float32(self.min_confidence)
        return DSparkDrafter(*parts(self, target), self.kind or kind, least)

    @classmethod
    def fresh(
        cls,
        target: Target,
        *,
        num_draft: int,
        seed: int = 0,
        from_target: bool | None = False,
        **sizes: Any,
    ) -> DSpark:
        """A randomly initialised one for ``target``, as `DFlash.fresh`."""
        defaults = {
            "shifted": True,
            "markov_rank": min(256, target.config.hidden_size),
            "confidence_head": True,
        }
        config = fresh_config(target.config, num_draft, **{**defaults, **sizes})
        return cls(fresh_net(config, target, seed, from_target))


@pytree
class Held:
    """What `DSparkDrafter` knows of a cycle until its verdict."""

    cache: Cache  # of the context
    # [B, K] float32: the chance that each guess is accepted; NaN without a head.
    confidence: Array


@pytree
class DSparkDrafter(DFlashDrafter):
    """`DFlashDrafter` with guesses drawn from left to right."""

    min_confidence: Array | None = None  # [] float32

    @property
    def widths(self) -> tuple[int, ...]:
        whole = (self.num_draft,)
        return whole if self.min_confidence is None else doubling_widths(self.num_draft)

    def propose(self, state: Cache, context: Context) -> tuple[Proposal, Held]:
        h = self.states(state, context)
        logits = self.logits(h)
        net = self.net.module

        def step(carry: Any, inputs: Any) -> Any:
            previous, counts = carry
            i, logits = inputs
            if self.config.markov_rank:
                logits = logits + net.markov_head(previous)
            guess, law = draw(logits, self.kind, i, counts, context)
            return (guess, count_guess(counts, guess)), (guess, law)

        slots = (jnp.arange(self.num_draft), logits.swapaxes(0, 1))
        first = (context.pending[:, 0], context.counts)
        _, (guesses, laws) = jax.lax.scan(step, first, slots)
        guesses, q = guesses.swapaxes(0, 1), None if laws is None else laws.swapaxes(0, 1)
        # A chance is that of a guess not drawn yet: it knows its slot and the token before.
        before = jnp.concatenate([context.pending, guesses[:, :-1]], axis=1)
        chances = self._confidence(net, h, before)
        wanted = None
        if self.min_confidence is not None:
            unlikely = ~(chances >= self.min_confidence)
            place = jnp.arange(self.num_draft, dtype=jnp.int32)[None, :]
            wanted = jnp.where(unlikely, place, self.num_draft).min(axis=1)
        return Proposal(tokens=guesses, q=q, wanted=wanted), Held(state, chances)

    def update(self, held: Held, kept: Kept) -> Cache:
        return self._append(held.cache, kept.count, kept.features)

    def _confidence(self, net: Any, h: Array, previous: Array) -> Array:
        """States [B, K, D], tokens [B, K] before -> the chance [B, K] that a guess is accepted."""
        if not self.config.confidence_head:
            return jnp.full(previous.shape, jnp.nan, jnp.float32)
        if self.config.confidence_with_markov and self.config.markov_rank:
            h = jnp.concatenate([h, net.markov_head.embed(previous).astype(h.dtype)], axis=-1)
        return jax.nn.sigmoid(net.confidence_head(h))
