"""Coupled verification: target and drafter share their noise, and nothing is rejected.

The target samples its own text with the Gumbel-max trick, the noise keyed by position. A guess
is kept while it equals what the target says anyway. The text is therefore the target's plain
sample for these keys, token for token, whatever the drafter, K or the batch (Daliri et al. 2024,
arXiv:2408.07978, give the one-token case and its acceptance).

What the drafter decides is only how often it is right. How often it is can be told exactly. With
E_l independent exponentials, E_l / p_l is smallest at the target's token Y and E_l / q_l at the
drafter's token X. Where x != y, integrating out the two minima leaves

    P(X = x, Y = y) = q_x p_y * integral of dt / B(t)^2 over t in [t_y, t_x], 0 if t_x < t_y,
    P(X = x, Y = x) = p_x q_x / ((p_x + q_x) B(t_x)),
    B(t) = sum_l max(q_l (1 - t), p_l t),    t_l = q_l / (p_l + q_l).

B is piecewise linear with corners t_l and never below 1/2, and over a linear piece the integral
is (t1 - t0) / (B(t0) B(t1)). One sort therefore gives the whole law. (Derived here; with
rho = t / (1 - t) the second line is the published 1 / sum_l max(p_l / p_x, q_l / q_x).)
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from specjax.core.noise import gumbel_argmax
from specjax.core.types import Array, Proposal, Verdict, pytree
from specjax.verify.base import (
    Rule,
    VerifyKeys,
    at_guesses,
    count_leading,
    end_guesses,
    normalise,
)
from specjax.verify.walk import WalkLaw, own_samples, walk


def _terms(p: Array, q: Array) -> tuple[Array, Array]:
    """P(Y = l | X = l) and F(t_l), F a primitive of 1 / B^2: [V], [V] -> [V], [V]."""
    total = p + q
    total = jnp.where(total > 0, total, 1.0)
    order = jnp.argsort(q / total)
    corner, p_sorted, q_sorted = (q / total)[order], p[order], q[order]
    # At corner t, p_l t is the larger where t_l <= t, and q_l (1 - t) elsewhere.
    above = jax.lax.cumsum(q_sorted, reverse=True) - q_sorted
    b = corner * jnp.cumsum(p_sorted) + (1.0 - corner) * above
    pieces = (corner[1:] - corner[:-1]) / (b[1:] * b[:-1])
    primitive = jnp.pad(jnp.cumsum(pieces), (1, 0))
    rank = jnp.argsort(order)
    same = jnp.minimum(p / (total * b[rank]), 1.0)  # rounding may exceed 1
    return same, primitive[rank]


def gumbel_coupling(p: Array, q: Array) -> Array:
    """The joint law of a drafter's and the target's token under shared Gumbel noise.

    Args:
      p: [V] float, the target's law.
      q: [V] float, the drafter's.

    Returns:
      [V, V] float: entry (x, y) is P(X = x, Y = y); the trace is the acceptance. Rows sum to
      q, columns to p.
    """
    same, primitive = _terms(p, q)
    apart = jnp.maximum(primitive[:, None] - primitive[None, :], 0.0)
    return q[:, None] * p[None, :] * apart + jnp.diag(q * same)


def gumbel_acceptance(p: Array, q: Array) -> Array:
    """P(X = Y) under shared Gumbel noise: [V], [V] -> []. In [(1-TV)/(1+TV), 1-TV]."""
    return (q * _terms(p, q)[0]).sum()


@pytree
class CoupledLaw:
    """The verdict's law given the guesses, the noise integrated out; computed when asked for.

    ``q`` says what the guesses reveal about the noise. None: nothing, they were chosen without
    it. Given: they were drawn from q *with* it, and the law conditions on that. A coupled
    drafter may leave q out where only ``Coupled.sample`` is used, which never looks at it; to
    ask such a proposal for its law, give it its q first.
    """

    logits: Array  # [K + 1, V]
    q: Array | None  # [K, V]
    guesses: Array  # [K + 1] int32, -1 for none

    @property
    def survival(self) -> Array:
        """[K]: see ``Law``."""
        same = jax.nn.softmax(self.logits[:-1], axis=-1)
        if self.q is not None:
            same, _ = jax.vmap(_terms)(same, self.q.astype(same.dtype))
        return jnp.cumprod(at_guesses(same, self.guesses[:-1]))

    def emission(self, index: Array) -> Array:
        """[V]: see ``Law``."""
        p, guess = jax.nn.softmax(self.logits[index]), self.guesses[index]
        weights = jnp.where(jnp.arange(p.shape[0], dtype=jnp.int32) == guess, 0.0, p)
        if self.q is not None and self.q.shape[0] > 0:
            q = self.q[jnp.minimum(index, self.q.shape[0] - 1)].astype(p.dtype)
            _, primitive = _terms(p, q)
            apart = jnp.maximum(primitive[jnp.maximum(guess, 0)] - primitive, 0.0)
            weights = jnp.where(guess >= 0, p * apart, p)
        return normalise(weights, p)


@dataclasses.dataclass(frozen=True)
class Coupled(Rule):
    """Keeps the guesses that equal the target's own position-keyed sample.

    For deterministic guesses acceptance is p(d), as good as any rule's. For guesses drawn with
    the same noise it is ``gumbel_acceptance``, somewhat below ``token``'s, in return for text
    that depends on the seed alone and a verdict that needs neither q nor a residual.

    Guesses drawn with noise of their own are refused. The text would still be the target's, but
    a guess would survive with probability sum_x p(x) q(x) only, never more than with ``token``
    or ``block``, and the law here, which reads q as shared noise, would be wrong about it.
    """

    name: ClassVar[str] = "coupled"
    takes: ClassVar[frozenset[str]] = frozenset({"one_hot", "coupled"})
    trees: ClassVar[bool] = True
    refusal: ClassVar[str] = (
        "drawn with noise of their own they would match the target's sample "
        "with probability sum p q only"
    )

    def law(self, logits: Array, proposal: Proposal) -> CoupledLaw | WalkLaw:
        """See ``Rule.law``; q, where given, means that the drafter shared the noise.

        The law of a tree is that of guesses chosen without the noise, and does not look at q.
        """
        guesses = end_guesses(proposal.tokens)
        if proposal.parents is not None:
            return WalkLaw(logits, guesses, proposal.parents, platform=self.platform)
        return CoupledLaw(logits=logits, q=proposal.q, guesses=guesses)

    def sample(self, keys: VerifyKeys, law: CoupledLaw | WalkLaw) -> Verdict:  # type: ignore[override]
        """See ``Rule.sample``; consumes ``keys.noise`` alone and computes no law."""
        if isinstance(law, WalkLaw):
            return walk(own_samples(keys.noise, law), law.guesses, law.parents)
        own = lambda key, logits: gumbel_argmax(key, logits, self.platform)
        tokens = jax.vmap(own)(keys.noise, law.logits)
        num_accepted = count_leading(tokens[:-1] == law.guesses[:-1])
        return Verdict(tokens=tokens, num_accepted=num_accepted)
