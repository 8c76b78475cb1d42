"""Typical acceptance (Medusa, Cai et al. 2024, arXiv:2401.10774, section 2.3.1): a lossy rule.

A guess x is accepted if p(x) > min(epsilon, delta * exp(-H(p))), with p the target's law and H its
entropy, and if all guesses before it are. No coin is tossed and the drafter's law is not asked, so
that a text is more often what the drafter guesses than the target alone would write. The token
behind the accepted guesses is drawn from p.

    python -m experiments.generate --drafter=demo:medusa --temperature=1 \\
        --rule=examples/typical_acceptance.py:rule
"""

import dataclasses

import jax
import jax.numpy as jnp

from specjax.extend import Array, Proposal, Rule, at_guesses, end_guesses, pytree


@pytree
class TypicalLaw:
    guesses: Array  # [K + 1]
    survival: Array  # [K], 1 or 0
    p: Array  # [K + 1, V]

    def emission(self, index: Array) -> Array:
        return self.p[index]


@dataclasses.dataclass(frozen=True)
class Typical(Rule):
    epsilon: float = 0.09
    delta: float = 0.3  # sqrt(epsilon), as in the paper's implementation

    name = "typical"
    takes = frozenset({"one_hot", "sampled", "coupled"})
    lossless = False

    def law(self, logits: Array, proposal: Proposal) -> TypicalLaw:
        p = jax.nn.softmax(logits, axis=-1)
        entropy = -jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0).sum(axis=-1)
        threshold = jnp.minimum(self.epsilon, self.delta * jnp.exp(-entropy))
        guesses = end_guesses(proposal.tokens)
        accepted = at_guesses(p, guesses) > threshold  # never where there is no guess
        return TypicalLaw(guesses, jnp.cumprod(accepted[:-1], dtype=p.dtype), p)


rule = Typical()
