"""Several heads for further tokens, one a guess: the state of a cycle.

Head k reads pairs, what head k - 1 made of a token (head 0: the target's state) and the token k + 1
behind it, at that token's position. It guesses the token behind that one. So it needs a token more
of the text than the head before:

    text     a b c d e        e is pending
    head 0   (a,b) (b,c) (c,d) (d,e)       -> guess x from (d,e)
    head 1   (a,c) (b,d) (c,e) (d,x)       -> guess y from (d,x)

Pairs of all n heads are committed together, up to the last of which head n - 1 has the token: the
n - 1 behind it are read again in the next cycle. Guesses behind those of the heads are made by the
last one, whose states then move on along the text as in `drafters.pairs`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.cache import Block, Cache
from specjax.core.cache.block import put, widen
from specjax.core.sharding import constrain
from specjax.core.types import Array, Kept, Proposal, pytree, static
from specjax.core.view import View, causal
from specjax.drafters.base import Context
from specjax.drafters.drawing import count_guess, draw
from specjax.models.vocabulary import Vocabulary
from specjax.sampling import Counts

_NONE: Block = ()
Guess = tuple[Array, Array | None]  # [B] int32, and its law [B, V] if sampled


@pytree
class Columns:
    """What is known of the text. ``cache.length + waiting == length - 1``."""

    cache: Cache  # of the pairs that all heads have read, an entry a head
    features: Array  # [B, K + n, D], of positions cache.length, cache.length + 1, ..
    waiting: Array  # [B] int32, how many of them count
    recent: Array  # [B, n - 1] int32, in a prefill: the tokens behind cache.length


@pytree
class Held:
    """What is known of a cycle until its verdict."""

    state: Columns
    block: Block  # of the pairs that were waiting, [B, .., K + 1, .] a head


@pytree
class MTPHeadsDrafter:
    """The cycle's side of `MTP` with more than one head."""

    net: Any  # models.Frozen of an MTPNet
    vocabulary: Vocabulary  # the target's own tables
    num_draft: int = static()
    kind: str = static()

    @property
    def taps(self) -> tuple[int, ...]:
        found: tuple[int, ...] = self.net.config.taps
        return found

    @property
    def heads(self) -> int:
        """n, of which K is no less."""
        count: int = self.net.config.heads
        return count

    @property
    def reads_ahead(self) -> int:
        """The last head's pair of a token has the token n behind it."""
        return self.heads - 1

    def init(self, rows: int, slots: int) -> Columns:
        width, n = self.net.config.backbone.hidden_size, self.heads
        features = jnp.zeros((rows, self.num_draft + n, width), self.net.module.dtype)
        waiting = jnp.zeros((rows,), jnp.int32)
        recent = jnp.zeros((rows, n - 1), jnp.int32)
        return keep(self.net.init_cache(rows, slots), features, waiting, recent)

    def prefill(self, state: Columns, tokens: Array, count: Array, features: Array | None) -> Any:
        assert features is not None
        n, size, waiting = self.heads, tokens.shape[1], state.waiting
        x = follow(state.features, jnp.zeros_like(waiting), waiting, features, size + n)
        # Of the first token of a text nothing is known before it, so that it is in no pair.
        behind = jnp.pad(tokens, ((0, 0), (0, 1)))
        behind = jnp.where((waiting == 0)[:, None], behind[:, 1:], behind[:, :-1])
        known = jnp.maximum(waiting - 1, 0)
        after = follow(state.recent, jnp.zeros_like(known), known, behind, size + 2 * n - 1)
        view, fed, block = View.chain(size + n), x, _NONE
        for k in range(n):
            fed, _, part = self._read(fed, after[:, k : k + size + n], state.cache, view, k)
            block = (*block, *part)
        total = waiting + count
        done = jnp.maximum(total - n, 0)
        return keep(
            state.cache.commit(first(block, size), done),
            follow(x, done, total - done, x, state.features.shape[1]),
            total - done,
            follow(after, done, jnp.full_like(done, n - 1), after, n - 1),
        )

    def propose(self, state: Columns, context: Context) -> tuple[Proposal, Held]:
        # A text of one token has no feature: zeros stand in for it, at position -1, seen by
        # themselves alone and never committed.
        none, n = state.waiting == 0, self.heads
        fed = jnp.where(none[:, None, None], 0, state.features)
        depth = jnp.arange(fed.shape[1])[None, :] - none.astype(jnp.int32)[:, None]
        view = View(depth, causal(fed.shape[1]))
        last = (jnp.maximum(state.waiting, 1) - 1)[:, None, None]
        guesses: list[Guess] = []
        counts, block = context.counts, _NONE
        for k in range(n):
            tokens = self._tokens(state, context, depth + k, [guess for guess, _ in guesses])
            fed, normed, part = self._read(fed, tokens, state.cache, view, k)
            block = (*block, *part)
            guess, law = self._draw(normed, last, jnp.int32(k), counts, context)
            counts = count_guess(counts, guess)
            guesses.append((guess, law))
        stacked = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *guesses)
        if self.num_draft > n:
            fed = jnp.take_along_axis(fed, last, axis=1)
            more = self._further(state, context, guesses[-1][0], fed, block[-1:], depth, counts)
            stacked = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), stacked, more)
        tokens, q = stacked
        return Proposal(tokens=tokens, q=q), Held(state, first(block, self.num_draft + 1))

    def update(self, held: Held, kept: Kept) -> Columns:
        # What a finished row had waiting still waits.
        active, state = kept.count > 0, held.state
        assert kept.features is not None
        done = jnp.where(active, jnp.maximum(state.waiting - (self.heads - 1), 0), 0)
        rest = state.waiting - done
        features = follow(state.features, done, rest, kept.features, state.features.shape[1])
        return keep(
            state.cache.commit(held.block, done, after=kept.tokens[:, -1]),
            jnp.where(active[:, None, None], features, state.features),
            jnp.where(active, rest + kept.count, state.waiting),
            state.recent,
        )

    def cut(self, state: Columns, length: Array) -> Columns:
        # Of every head pairs 0 .. length - 1, whose tokens are known (`reads_ahead`): none waits
        # before the features of the first token that is fed again.
        cache, waiting = state.cache.cut(length), jnp.zeros_like(state.waiting)
        return keep(cache, state.features, waiting, state.recent)

    def grow(self, state: Columns, slots: int) -> Columns:
        return dataclasses.replace(state, cache=state.cache.grow(slots))

    # -----------------------------------------------------------------------------------------

    def _read(
        self, x: Array, tokens: Array, cache: Cache, view: View, head: int, before: Any = None
    ) -> tuple[Array, Array, Block]:
        embedded = self.vocabulary.embed(tokens)
        found: tuple[Array, Array, Block] = self.net.module(
            x, embedded, cache, view, before, head=head
        )
        return found

    def _tokens(
        self, state: Columns, context: Context, depth: Array, guesses: list[Array]
    ) -> Array:
        """The tokens right behind the places ``depth`` [B, T] of the window: text, then guesses."""
        at = state.cache.length[:, None] + depth + 1
        ahead = at - context.length[:, None]
        known = jnp.minimum(at, context.length[:, None] - 1)
        tokens = jnp.take_along_axis(context.tokens, known, axis=1)
        if not guesses:
            return tokens
        index = jnp.clip(ahead, 0, len(guesses) - 1)
        guessed = jnp.take_along_axis(jnp.stack(guesses, axis=1), index, axis=1)
        return jnp.where(ahead >= 0, guessed, tokens)

    def _draw(
        self, normed: Array, last: Array, index: Array, counts: Counts | None, context: Context
    ) -> Guess:
        """Guess ``index`` [] from the states [B, T, D] at the places ``last`` [B, 1, 1]."""
        normed = jnp.take_along_axis(normed, last, axis=1)[:, 0]
        head = self.vocabulary
        best = lambda: head.likeliest(normed)
        return draw(head.head(normed), self.kind, index, counts, context, best)

    def _further(
        self,
        state: Columns,
        context: Context,
        guess: Array,
        fed: Array,
        block: Block,
        depth: Array,
        counts: Counts | None,
    ) -> tuple[Array, Array | None]:
        """Guesses n..K - 1 and their laws, by the last head from its own states."""
        n, width, head = self.heads, depth.shape[1], self.heads - 1
        size = width + self.num_draft - n + 1
        place = jnp.arange(size)
        committed = place[None, None, :] < state.waiting[:, None, None]
        behind = state.waiting[:, None] + jnp.arange(self.num_draft - n)[None, :]
        depth = jnp.concatenate([depth, behind], axis=1)
        none = jnp.zeros((len(guess), 1, 1), jnp.int32)

        def step(carry: Any, i: Array) -> Any:
            guess, fed, block, counts = carry
            drafted = (place >= width) & (place < width + i - n) | (place == size - 1)
            here = state.waiting[:, None] + i - n
            view = View(jnp.concatenate([depth, here], axis=1), committed | drafted[None, None, :])
            fed, normed, new = self._read(fed, guess[:, None], state.cache, view, head, block)
            guess, law = self._draw(normed, none, i, counts, context)
            block = put(block, new, width + i - n, self.net.platform)
            return (guess, fed, block, count_guess(counts, guess)), (guess, law)

        carry = (guess, fed, widen(block, size - 1), counts)
        _, found = jax.lax.scan(step, carry, jnp.arange(n, self.num_draft))
        more: Guess = jax.tree.map(lambda x: x.swapaxes(0, 1), found)
        return more


def follow(old: Array, start: Array, count: Array, new: Array, size: int) -> Array:
    """[B, size, ..]: ``count`` [B] of ``old`` from ``start`` [B] on, then ``new``; then stale."""
    place = jnp.arange(size)[None, :]
    beyond = old.shape[1] + place - count[:, None]
    index = jnp.where(place < count[:, None], start[:, None] + place, beyond)
    both = jnp.concatenate([old, new.astype(old.dtype)], axis=1)
    index = jnp.minimum(index, both.shape[1] - 1)
    return jnp.take_along_axis(both, index.reshape(*index.shape, *[1] * (both.ndim - 2)), axis=1)


def first(block: Block, size: int) -> Block:
    """The first ``size`` tokens of a block."""
    found: Block = jax.tree.map(lambda x: x[..., :size, :], block)
    return found


def keep(cache: Cache, features: Array, waiting: Array, recent: Array) -> Columns:
    """The state, split over the rows of a mesh like the rest of a batch's."""
    return Columns(
        cache,
        constrain(features, "batch", None, None),
        constrain(waiting, "batch"),
        constrain(recent, "batch", None),
    )
