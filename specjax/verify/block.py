"""Block verification: one joint decision about all guesses."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from specjax.core.types import Array, Proposal
from specjax.verify.base import RejectionLaw, Rule, rejection_terms
from specjax.verify.token import Token


def log_levels(log_ratios: Array) -> Array:
    """The levels P_i = min(1, P_{i-1} r_i), P_0 = 1, in log space and without a loop.

    Args:
      log_ratios: [K] float, log r_i = log p(d_i) - log q(d_i); -inf where p(d_i) = 0.

    Returns:
      [K + 1] float: log P_i, a walk of steps log r_i that is reflected at 0. Subtracting the
      running maximum of the free walk does the reflection.
    """
    walk = jnp.cumsum(log_ratios)
    return jnp.pad(walk - jnp.maximum(jax.lax.cummax(walk), 0.0), (1, 0))


def hit_chances(residual: Array, log_level: Array) -> Array:
    """The chances h_i that a scan from the block's end, having come to i, accepts i guesses.

    Args:
      residual: [K] float, S_i = sum_x relu(P_i p_i(x) - q_i(x)).
      log_level: [K + 1] float, log P_i.

    Returns:
      [K + 1] float: h_i = S_i / (S_i + (1 - P_i)) for i < K, and h_K = P_K.
    """
    # 1 - P_i by expm1 and added last: S + 1 - P would cancel where P is near 1.
    total = residual - jnp.expm1(log_level[:-1])
    # total = 0 means P_i = 1 and p_i = q_i: stop here at the latest, and sample p_i.
    inner = jnp.where(total > 0, residual / jnp.where(total > 0, total, 1.0), 1.0)
    return jnp.append(inner, jnp.exp(log_level[-1]))


@dataclasses.dataclass(frozen=True)
class Block(Rule):
    """Accepts the longest prefix whose joint likelihood ratio allows it.

    Source: Sun et al. 2025, arXiv:2403.10444, algorithm 2. With the levels P_i of
    ``log_levels``, P(num_accepted >= i | the first i guesses) = P_i, which is never less than
    the product of min(1, r_j) that the rule ``token`` reaches, and no lossless rule that emits
    accepted guesses and one more token reaches more. Given the *whole* block, the number
    accepted is the largest i whose coin of chance h_i shows heads, hence
    P(num_accepted >= i | block) = 1 - prod_{j >= i} (1 - h_j).
    """

    name: ClassVar[str] = "block"
    takes: ClassVar[frozenset[str]] = Token.takes
    refusal: ClassVar[str] = Token.refusal

    def law(self, logits: Array, proposal: Proposal) -> RejectionLaw:
        """See ``Rule.law``; the returned ``scale`` is P_i for sampled guesses."""
        if proposal.q is None:  # for point masses the two rules are one: P_i = prod p(d_j)
            return Token().law(logits, proposal)
        p, q, guesses, p_at, q_at = rejection_terms(logits, proposal)
        log_level = log_levels(jnp.log(p_at) - jnp.log(q_at))
        level = jnp.exp(log_level)
        drafted = jnp.where(guesses[:-1, None] >= 0, proposal.q.astype(p.dtype), 0.0)
        residual = jnp.maximum(level[:-1, None] * p[:-1] - drafted, 0.0).sum(axis=-1)
        log_miss = jnp.log1p(-hit_chances(residual, log_level)[1:])
        survival = -jnp.expm1(jax.lax.cumsum(log_miss, reverse=True))
        return RejectionLaw(p=p, q=q, guesses=guesses, scale=level, survival=survival)
