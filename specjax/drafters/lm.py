"""An independent, smaller language model (Leviathan et al. 2023; Chen et al. 2023).

Between cycles the draft cache holds every committed token but the last two. The first draft step of
a cycle is two tokens wide and feeds both: after a full acceptance the last guess has not been
through the draft model yet, and feeding it together with the pending token costs one narrow pass
less than a step of its own.

    committed   a b c d     length 4, cache length 2
    feed        c d         -> law of the first guess; then one guess a step, K - 1 times
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.cache import Block, Cache
from specjax.core.types import KINDS, Array, Proposal, one_line, pytree, static
from specjax.drafters.base import Context, check_num_draft
from specjax.drafters.drawing import count_guess, draw
from specjax.drafters.vocabularies import check_same_tokens
from specjax.models.layers.attention import causal
from specjax.sampling import Counts


def last_two(tokens: Array, length: Array) -> Array:
    """The last two committed tokens [2] of one row; the first twice if there is but one."""
    return tokens[jnp.maximum(length - 2 + jnp.arange(2), 0)]


@dataclasses.dataclass(frozen=True)
class LM:
    """A loaded draft model as a drafter, before it is known what it will draft for.

    Attributes:
      model: the draft, as `specjax.load` returns it.
      num_draft: K, guesses a cycle.
      kind: how they are drawn, see `LMDrafter`; None: what suits the temperature and the rule.
    """

    model: Any
    num_draft: int = 5
    kind: str | None = None

    __repr__ = one_line

    def bind(self, target: Any, kind: str) -> LMDrafter:
        """The drafter for ``target``; ``kind`` is what to use where the user did not say.

        Raises:
          ValueError: if target and draft do not speak the same tokens or share a mesh.
        """
        check_num_draft(self.num_draft)
        if self.kind is not None and self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}: must be one of {', '.join(KINDS)}.")
        check_same_tokens(target, self.model)
        if target.mesh != self.model.mesh:
            raise ValueError(
                f"Draft {self.model.name} and target {target.name} are on different devices; load "
                "both with the same mesh (a small draft with replicate=True)."
            )
        same = target.config.vocab_size == self.model.config.vocab_size
        size = None if same else target.config.vocab_size
        return LMDrafter(self.model.net, self.num_draft, self.kind or kind, size)


@pytree
class LMDrafter:
    """K guesses, one after the other, by a language model.

    ``kind`` says how they are drawn, see `drafters.drawing`. ``vocab_size`` is the target's where
    the draft has more rows of padding, or fewer.
    """

    net: Any  # models.Frozen
    num_draft: int = static()
    kind: str = static()
    vocab_size: int | None = static(default=None)

    taps = ()

    def init(self, rows: int, slots: int) -> Cache:
        return self.net.init_cache(rows, slots)

    def prefill(self, draft: Cache, tokens: Array, count: Array, features: Array | None) -> Cache:
        del features
        _, _, block = self.net.hidden(self._known(tokens), draft)
        return draft.commit(block, count)

    def propose(self, draft: Cache, context: Context) -> tuple[Proposal, Cache]:
        # A text of one token has none before the last: then the first of the pair is padding, at
        # position -1, seen by nobody and dropped before the commit.
        alone = context.length == 1
        cache = draft.rollback(jnp.maximum(context.length - 2, 0))
        tokens = jax.vmap(last_two)(context.tokens, context.length)
        positions = context.length[:, None] - 2 + jnp.arange(2)[None, :]
        padding = alone[:, None, None] & (jnp.arange(2) == 0)[None, None, :]
        x, _, block = self.net.hidden(
            self._known(tokens), cache, positions=positions, visible=causal(2) & ~padding
        )
        guess, law = self._draw(x[:, -1], jnp.int32(0), context.counts, context)

        # One guess a step from here on. Their keys and values wait in the block, K + 1 tokens wide.
        place = jnp.arange(self.num_draft + 2)
        padding = alone[:, None, None] & (place == 0)[None, None, :]

        def step(carry: tuple[Array, Block, Counts | None], i: Array) -> Any:
            guess, block, counts = carry
            counts = count_guess(counts, guess)
            seen = (place < i + 1) | (place == self.num_draft + 1)
            x, _, new = self.net.hidden(
                guess[:, None],
                cache,
                before=block,
                positions=(context.length - 1 + i)[:, None],
                visible=seen[None, None, :] & ~padding,
            )
            guess, law = self._draw(x[:, 0], i, counts, context)
            return (guess, block.put(new, i + 1), counts), (guess, law)

        carry = (guess, block.widen(self.num_draft + 1), context.counts)
        (last, block, _), rest = jax.lax.scan(step, carry, jnp.arange(1, self.num_draft))
        guesses, q = jax.tree.map(
            lambda first, more: jnp.concatenate([first[:, None], more.swapaxes(0, 1)], axis=1),
            (guess, law),
            rest,
        )
        # Committed at once, when all that reads the cache has been read.
        count = jnp.where(alone, self.num_draft, self.num_draft + 1) + jnp.minimum(last, 0)
        return Proposal(tokens=guesses, q=q), cache.commit(block.drop_first(alone), count)

    def _draw(
        self, x: Array, index: Array, counts: Counts | None, context: Context
    ) -> tuple[Array, Array | None]:
        """Guess ``index`` [B] of the cycle from states ``x`` [B, D]; its law [B, V] if sampled."""
        logits = self.net.head(x)
        if self.vocab_size is not None:
            lacking = max(self.vocab_size - logits.shape[-1], 0)
            logits = jnp.pad(logits, ((0, 0), (0, lacking)), constant_values=-jnp.inf)
            logits = logits[:, : self.vocab_size]
        return draw(logits, self.kind, index, counts, context)

    def _known(self, tokens: Array) -> Array:
        """Tokens as the draft can look them up: of those it has no row for, its last one."""
        if self.vocab_size is None:
            return tokens
        return jnp.minimum(tokens, self.net.config.vocab_size - 1)

    def update(
        self, draft: Cache, block: Array, count: Array, length: Array, features: Array | None
    ) -> Cache:
        del block, count, features
        return draft.rollback(jnp.maximum(length - 2, 0))

    def grow(self, draft: Cache, slots: int) -> Cache:
        return draft.grow(slots)
