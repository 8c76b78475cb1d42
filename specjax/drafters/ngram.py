"""Prompt lookup (Saxena 2023): continues the longest earlier match of the text's end.

Runs on the device: a match at position t is compared for all t at once, so a cycle costs
O(max_ngram * S) integer operations and no trip to the host.
"""

from __future__ import annotations

import jax.numpy as jnp

from specjax.core.family import Family
from specjax.core.types import Array, pytree, static
from specjax.drafters.base import check_num_draft
from specjax.drafters.bases import Stateless


@pytree
class NGram(Stateless):
    """Deterministic guesses from the row's own committed tokens.

    Of all earlier places where the last ``n`` tokens occur, with n from ``max_ngram`` down to
    ``min_ngram``, the longest match wins, and of several the latest. Where the continuation runs
    into the end of the text it repeats with the period of the match. No match: no guess.
    """

    num_draft: int = static(default=5)
    max_ngram: int = static(default=3)
    min_ngram: int = static(default=1)

    summary = "prompt lookup in the text so far"
    family = Family.LOOKUP
    nested = True

    def __post_init__(self) -> None:
        check_num_draft(self.num_draft)
        if not 1 <= self.min_ngram <= self.max_ngram:
            raise ValueError(
                f"min_ngram={self.min_ngram}, max_ngram={self.max_ngram}: must satisfy "
                "1 <= min_ngram <= max_ngram."
            )

    def guess(self, tokens: Array, length: Array) -> Array:
        """tokens [S], length [] -> guesses [K]."""
        slots = jnp.arange(tokens.shape[0])
        # matched[t]: how many tokens before and at t equal those before and at the last one.
        running = slots < length - 1
        matched = jnp.zeros_like(tokens)
        for j in range(self.max_ngram):
            shifted = jnp.pad(tokens, (j, 0), constant_values=-1)[: tokens.shape[0]]
            last = tokens[jnp.maximum(length - 1 - j, 0)]
            running = running & (shifted == last) & (slots >= j) & (length - 1 >= j)
            matched = matched + running.astype(jnp.int32)
        longest = matched.max()
        place = jnp.where(matched == longest, slots, -1).max()
        period = jnp.maximum(length - 1 - place, 1)
        guess = tokens[place + 1 + jnp.arange(self.num_draft) % period]
        return jnp.where(longest >= self.min_ngram, guess, -1)
