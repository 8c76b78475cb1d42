"""Token-level rejection, the original rule of speculative sampling."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from specjax.core.types import Array, Proposal
from specjax.verify.base import RejectionLaw, Rule, rejection_terms


@dataclasses.dataclass(frozen=True)
class Token(Rule):
    """Accepts guess d with probability min(1, p(d) / q(d)), one guess after the other.

    A rejection is corrected from relu(p - q). Sources: Leviathan et al. 2023, arXiv:2211.17192,
    algorithm 1; Chen et al. 2023, arXiv:2302.01318, algorithm 2. A guess survives with
    probability sum_x min(p(x), q(x)) = 1 - TV(p, q), the most that any rule can reach for one
    guess; over a whole block the rule ``block`` does better. A deterministic guess survives
    with probability p(d).
    """

    name: ClassVar[str] = "token"
    takes: ClassVar[frozenset[str]] = frozenset({"one_hot", "sampled"})
    refusal: ClassVar[str] = (
        "coupled noise is keyed by position and returns after a rejection, "
        "but rejection is exact only for guesses drawn with fresh noise"
    )

    def law(self, logits: Array, proposal: Proposal) -> RejectionLaw:
        """See ``Rule.law``."""
        p, q, guesses, p_at, q_at = rejection_terms(logits, proposal)
        survival = jnp.cumprod(jnp.minimum(p_at / q_at, 1.0))
        scale = jnp.ones(guesses.shape, p.dtype)
        return RejectionLaw(p=p, q=q, guesses=guesses, scale=scale, survival=survival)
