"""Suffix decoding: the text so far says what follows (Oliaro et al. 2024, arXiv:2411.04975).

Wherever the last m tokens stood before, something followed. For each m = 1..P the guesses walk
through what did, from the most frequent token to the most frequent token behind it. The paper's
suffix tree holds counts; here they are made anew each cycle, by a histogram over the places that
still agree, so that all shapes are static. What is left out: the second tree, of earlier
responses, and branches (the walk is the paper's tree with one child a node).

    python -m experiments.generate --drafter=examples/suffix_decoding.py:Suffix:8
"""

import jax
import jax.numpy as jnp

from specjax.extend import Family, Stateless, pytree, register_drafter, static


@pytree
class Suffix(Stateless):
    """Of the walks for each m the one whose guesses have the highest score."""

    num_draft: int = static(default=8)
    longest: int = static(default=16)  # P, the longest suffix that is looked for
    factor: float = static(default=2.0)  # alpha: a match of m tokens is worth alpha * m guesses

    family = Family.LOOKUP
    summary = "suffix decoding: what most often followed the end of the text"

    def guess(self, tokens: jax.Array, length: jax.Array) -> jax.Array:
        """[S], [] -> [K]; -1 behind the last guess of the best walk."""
        place = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        text = jnp.where(place < length, tokens, -1)
        known = jnp.sort(text)  # equal tokens have equal places in it: an alphabet of S letters
        letter = jnp.searchsorted(known, text)

        # agree[m - 1, i]: the m tokens before place i are the last m of the text.
        sizes = range(1, self.longest + 1)
        same = [(place >= m) & (jnp.roll(text, m) == text[length - m]) for m in sizes]
        agree = jnp.cumprod(jnp.stack(same), axis=0, dtype=jnp.int32)

        guesses, trust = [], []
        certain = jnp.ones(self.longest, jnp.float32)  # D(node): that the walk comes here
        for k in range(self.num_draft):
            alive = jnp.where((place + k < length)[None, :], agree, 0)
            ahead = jnp.roll(letter, -k)
            count = jax.vmap(lambda a, to=ahead: jnp.zeros_like(place).at[to].add(a))(alive)
            best = jnp.argmax(count, axis=1)
            share = count.max(axis=1) / jnp.maximum(count.sum(axis=1), 1)  # C(node)
            worth = jnp.array([k < self.factor * m for m in sizes])
            certain = jnp.where(worth, certain * share, 0.0)
            guesses.append(jnp.where(certain > 0, known[best], -1))
            trust.append(certain)
            agree = jnp.where(ahead[None, :] == best[:, None], alive, 0)
        winner = jnp.argmax(jnp.stack(trust).sum(axis=0))  # SCORE: the sum of D
        return jnp.stack(guesses)[:, winner].astype(jnp.int32)


register_drafter("suffix", Suffix)
