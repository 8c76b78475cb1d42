"""Guesses from pairs, one step after another: the state of a cycle that EAGLE-3 and MTP share.

The draft reads pairs, the feature f_t of a token and the token x_{t+1} after it, at position t. Of
the pending token there is no feature yet, so all pairs that can be made end with it. The last
verdict's pairs are read when the next guesses are due, in the first pass of the cycle: its output
at the last of them gives the first guess. From there on the draft feeds on its own states.

    committed   a b c d e            e is pending
    cache       (a,b)                m = 1 pair
    waiting     f_b f_c f_d          features of positions m, m + 1, ..
    first pass  (b,c) (c,d) (d,e)    -> guess x; into the cache once the verdict is heard
    then        (s,x) (s',y) ..      one guess a step, K - 1 times; dropped afterwards
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.cache import Block, Cache
from specjax.core.cache.block import drop_first, put, widen
from specjax.core.ops import steps
from specjax.core.sharding import constrain
from specjax.core.types import Array, Kept, Proposal, pytree
from specjax.core.view import View, causal
from specjax.drafters.base import Context
from specjax.drafters.drawing import count_guess
from specjax.sampling import Counts


@pytree
class Pairs:
    """What a `PairDrafting` knows of the text. ``cache.length + waiting == length - 1``."""

    cache: Cache  # of the pairs that were read
    features: Array  # [B, K + 1, D], of positions cache.length, cache.length + 1, ..
    waiting: Array  # [B] int32, how many of them count


@pytree
class Held:
    """What `PairDrafting` knows of a cycle until its verdict."""

    state: Pairs
    block: Block  # of the pairs that were waiting, [B, .., K + 1, .]


class PairDrafting:
    """The cycle's side of a drafter of pairs; what its network does with them, a subclass says."""

    net: Any  # models.Frozen
    num_draft: int

    @property
    def taps(self) -> tuple[int, ...]:
        found: tuple[int, ...] = self.net.config.taps
        return found

    # --- what a subclass writes ------------------------------------------------------------

    def fuse(self, features: Array | None) -> Array:
        """Tapped states [B, T, F] -> features of pairs [B, T, D]."""
        raise NotImplementedError

    def read(
        self, x: Array, tokens: Array, cache: Cache, view: View, before: Block | None = None
    ) -> tuple[Array, Array, Block]:
        """Runs the draft over pairs of ``x`` [B, T, D] and ``tokens`` [B, T] behind the cache.

        Returns:
          The states to feed back [B, T, D], those for the head [B, T, D], what to commit.
        """
        raise NotImplementedError

    def draw(
        self, normed: Array, index: Array, counts: Counts | None, context: Context
    ) -> tuple[Array, Array | None]:
        """Guess ``index`` [B] from states [B, 1, D]; its law [B, V] if sampled."""
        raise NotImplementedError

    # --- the cycle ---------------------------------------------------------------------------

    def init(self, rows: int, slots: int) -> Pairs:
        shape = (rows, self.num_draft + 1, self.net.config.backbone.hidden_size)
        features = jnp.zeros(shape, self.net.module.dtype)
        return keep(self.net.init_cache(rows, slots), features, jnp.zeros((rows,), jnp.int32))

    def prefill(self, state: Pairs, tokens: Array, count: Array, features: Array | None) -> Pairs:
        # The chunk's first token belongs to the last feature of the chunk before. The very first
        # one has none: a place that nobody sees, dropped before the commit.
        first = state.waiting == 0
        skipped = first.astype(jnp.int32)
        fused = self.fuse(features)
        x = jnp.concatenate([state.features[:, :1], fused[:, :-1]], axis=1)
        place = jnp.arange(x.shape[1])
        hidden = first[:, None, None] & (place == 0)[None, None, :]
        view = View(place[None, :] - skipped[:, None], causal(len(place)) & ~hidden)
        _, _, block = self.read(x, tokens, state.cache, view)
        last = jnp.take_along_axis(fused, jnp.maximum(count - 1, 0)[:, None, None], axis=1)
        kept = jnp.where((count > 0)[:, None, None], last, state.features[:, :1])
        return keep(
            state.cache.commit(drop_first(block, first), jnp.maximum(count - skipped, 0)),
            state.features.at[:, :1].set(kept),
            jnp.where(count > 0, 1, state.waiting),
        )

    def propose(self, state: Pairs, context: Context) -> tuple[Proposal, Held]:
        # A text of one token has no feature: zeros stand in for it, at position -1, seen by
        # themselves alone and never committed.
        width, cache = self.num_draft + 1, state.cache
        none = state.waiting == 0
        pairs = jnp.maximum(state.waiting, 1)
        features = jnp.where(none[:, None, None], 0, state.features)
        place = jnp.arange(width + self.num_draft)
        first = place[None, :width] - none.astype(jnp.int32)[:, None]  # [B, K + 1] depths
        after = jnp.minimum(cache.length[:, None] + first + 1, context.length[:, None] - 1)
        tokens = jnp.take_along_axis(context.tokens, after, axis=1)
        fed_back, normed, block = self.read(features, tokens, cache, View(first, causal(width)))
        last = (pairs - 1)[:, None, None]
        fed = jnp.take_along_axis(fed_back, last, axis=1)
        normed = jnp.take_along_axis(normed, last, axis=1)
        guess, law = self.draw(normed, jnp.int32(0), context.counts, context)

        # One guess a step from here on, behind the places of the first pass.
        committed = place[None, None, :] < state.waiting[:, None, None]
        behind = state.waiting[:, None] + jnp.arange(self.num_draft - 1)[None, :]
        depth = jnp.concatenate([first, behind], axis=1)

        def step(carry: tuple[Array, Array, Block, Counts | None], i: Array) -> Any:
            guess, fed, block, counts = carry
            counts = count_guess(counts, guess)
            drafted = (place >= width) & (place < width + i - 1) | (place == place[-1])
            here = state.waiting[:, None] + i - 1
            view = View(jnp.concatenate([depth, here], axis=1), committed | drafted[None, None, :])
            fed, normed, new = self.read(fed, guess[:, None], cache, view, block)
            guess, law = self.draw(normed, i, counts, context)
            return (guess, fed, put(block, new, width + i - 1), counts), (guess, law)

        carry = (guess, fed, widen(block, width + self.num_draft - 1), context.counts)
        numbers, platform = jnp.arange(1, self.num_draft), self.net.platform
        _, rest = steps(step, carry, numbers, platform=platform)
        guesses, q = jax.tree.map(
            lambda first, more: jnp.concatenate([first[:, None], more.swapaxes(0, 1)], axis=1),
            (guess, law),
            rest,
        )
        return Proposal(tokens=guesses, q=q), Held(state, block)

    def update(self, held: Held, kept: Kept) -> Pairs:
        # What a finished row had waiting still waits.
        active, state = kept.count > 0, held.state
        return keep(
            state.cache.commit(
                held.block, jnp.where(active, state.waiting, 0), after=kept.tokens[:, -1]
            ),
            jnp.where(active[:, None, None], self.fuse(kept.features), state.features),
            jnp.where(active, kept.count, state.waiting),
        )

    def cut(self, state: Pairs, length: Array) -> Pairs:
        # Pairs 0 .. length - 1, the last of them with the first token that is fed again: so none
        # is missing before the features of that token, and none waits.
        return keep(state.cache.cut(length), state.features, jnp.zeros_like(state.waiting))

    def grow(self, state: Pairs, slots: int) -> Pairs:
        return dataclasses.replace(state, cache=state.cache.grow(slots))


def keep(cache: Cache, features: Array, waiting: Array) -> Pairs:
    """The state, split over the rows of a mesh like the rest of a batch's."""
    return Pairs(cache, constrain(features, "batch", None, None), constrain(waiting, "batch"))
