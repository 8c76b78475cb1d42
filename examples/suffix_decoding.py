"""Suffix decoding (Oliaro et al. 2024, arXiv:2411.04975), over the row's own text.

    python -m experiments.generate --drafter=examples/suffix_decoding.py:Suffix:8

The text is searched for the places where its own end occurred before, as long a stretch of it as
there is. Each continuation votes for its next token with the length of its match, the winner is
guessed, and only the places that agree vote on: the most likely path through the suffix tree of the
text. The tree itself is never built: on an accelerator all places are compared at once.
"""

import jax
import jax.numpy as jnp

from specjax.extend import Array, Family, Stateless, check_num_draft, pytree, static


@pytree
class Suffix(Stateless):
    num_draft: int = static(default=8)
    longest: int = static(default=16)  # tokens of the end that are compared
    shortest: int = static(default=1)  # a match of fewer guesses nothing

    family = Family.LOOKUP
    nested = True

    def __post_init__(self):
        check_num_draft(self.num_draft)

    def guess(self, tokens: Array, length: Array) -> Array:
        slots = jnp.arange(tokens.shape[0])
        # matched[t]: how many tokens up to t equal those up to the last one.
        running, matched = slots < length - 1, jnp.zeros_like(tokens)
        for j in range(self.longest):
            there = jnp.pad(tokens, (j, 0), constant_values=-1)[: tokens.shape[0]]
            last = tokens[jnp.maximum(length - 1 - j, 0)]
            running = running & (there == last) & (slots >= j) & (j < length)
            matched = matched + running.astype(jnp.int32)

        def step(votes: Array, i: Array) -> tuple[Array, Array]:
            """``votes`` [S] of the places whose path was followed so far -> the next guess."""
            votes = jnp.where(slots + 1 + i < length, votes, 0)
            after = tokens[jnp.minimum(slots + 1 + i, tokens.shape[0] - 1)]
            total = jnp.where(after[None, :] == after[:, None], votes[None, :], 0).sum(-1)
            best = jnp.where(votes > 0, total, -1).argmax()
            guess = jnp.where(votes.max() > 0, after[best], -1)
            return jnp.where(after == guess, votes, 0), guess

        start = jnp.where(matched >= self.shortest, matched, 0)
        return jax.lax.scan(step, start, jnp.arange(self.num_draft))[1]
