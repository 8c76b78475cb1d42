"""Typical acceptance (Cai et al. 2024, arXiv:2401.10774, section 3.3), a rule that is not lossless.

    python -m experiments.generate --drafter=medusa --temperature=0.7 \\
        --rule=examples/typical_acceptance.py:rule

A guess d is kept where the target finds it likely enough, less so where its law p is flat:

    p(d) > min(epsilon, delta * exp(-entropy(p)))

and the token after the kept ones is drawn from p. What is kept does not depend on the drafter's own
law, and is not distributed as p: the text is another than the target's.
"""

import dataclasses

import jax
import jax.numpy as jnp

from specjax.extend import Array, Proposal, Rule, at_guesses, end_guesses, pytree


@pytree
class TypicalLaw:
    """What is kept is certain; the token after it follows the target's law."""

    p: Array  # [K + 1, V]
    guesses: Array  # [K + 1] int32
    survival: Array  # [K], 0 or 1

    def emission(self, index: Array) -> Array:
        return self.p[index]


@dataclasses.dataclass(frozen=True)
class Typical(Rule):
    epsilon: float = 0.09
    delta: float = 0.3

    name = "typical"
    takes = frozenset({"one_hot", "sampled", "coupled"})
    lossless = False

    def law(self, logits: Array, proposal: Proposal) -> TypicalLaw:
        p = jax.nn.softmax(logits, axis=-1)
        entropy = -(p * jnp.log(p + 1e-5)).sum(-1)
        least = jnp.minimum(self.epsilon, self.delta * jnp.exp(-entropy))[:-1]
        kept = at_guesses(p[:-1], proposal.tokens) > least
        return TypicalLaw(p, end_guesses(proposal.tokens), jnp.cumprod(kept.astype(p.dtype)))


rule = Typical()
