"""Greedy verification: keep the guesses that equal the target's argmax."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from specjax.core.ops import argmax
from specjax.core.types import Array, Proposal, Verdict, pytree, static
from specjax.verify.base import Rule, VerifyKeys, count_leading, end_guesses
from specjax.verify.walk import WalkLaw, walk


@pytree
class GreedyLaw:
    """A verdict that is certain: every probability is 0 or 1."""

    best: Array  # [K + 1] int32: the target's argmax after i guesses
    guesses: Array  # [K + 1] int32, -1 for none
    survival: Array  # [K]
    vocab: int = static()

    def emission(self, index: Array) -> Array:
        """[V]: see ``Law``."""
        return jax.nn.one_hot(self.best[index], self.vocab, dtype=self.survival.dtype)


@dataclasses.dataclass(frozen=True)
class Greedy(Rule):
    """Accepts while the guess is the target's most likely token; the lowest id wins ties.

    The text is the target's own argmax decoding, whatever the drafter guessed, up to the
    arithmetic of the verify pass: in bfloat16 a pass over K + 1 tokens and a pass over one may
    round differently. Neither a softmax nor randomness is involved.
    """

    name: ClassVar[str] = "greedy"
    takes: ClassVar[frozenset[str]] = frozenset({"one_hot", "coupled"})
    trees: ClassVar[bool] = True
    greedy_only: ClassVar[bool] = True

    def law(self, logits: Array, proposal: Proposal) -> GreedyLaw | WalkLaw:
        """See ``Rule.law``."""
        guesses = end_guesses(proposal.tokens)
        if proposal.parents is not None:
            return WalkLaw(logits, guesses, proposal.parents, True, self.platform)
        best = argmax(logits, platform=self.platform)
        survival = jnp.cumprod(best[:-1] == guesses[:-1], dtype=logits.dtype)
        return GreedyLaw(best=best, guesses=guesses, survival=survival, vocab=logits.shape[-1])

    def sample(self, keys: VerifyKeys, law: GreedyLaw | WalkLaw) -> Verdict:  # type: ignore[override]
        """See ``Rule.sample``; no key is consumed."""
        del keys
        if isinstance(law, WalkLaw):
            return walk(argmax(law.logits, platform=self.platform), law.guesses, law.parents)
        return along(law.best, law.guesses)

    def of_argmax(self, best: Array, proposal: Proposal) -> Verdict | None:
        """See ``Rule.of_argmax``."""
        if type(self) is not Greedy:
            return None  # of whoever changes something, law and sample are asked
        guesses = end_guesses(proposal.tokens)
        if proposal.parents is not None:
            return walk(best, guesses, proposal.parents)
        return along(best, guesses)


def along(best: Array, guesses: Array) -> Verdict:
    """The verdict on a chain [K + 1] by a target that says ``best`` behind its places."""
    return Verdict(tokens=best, num_accepted=count_leading(best[:-1] == guesses[:-1]))
