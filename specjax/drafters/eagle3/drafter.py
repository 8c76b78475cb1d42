"""EAGLE-3 (Li et al. 2025, arXiv:2503.01840) and EAGLE-3.1: guesses from fused target features.

The draft reads pairs, the feature f_t of a token and the token x_{t+1} after it, at position t. Of
the pending token there is no feature yet, so all pairs that can be made end with it. The last
verdict's pairs are read when the next guesses are due, in the first pass of the cycle: its output
at the last of them gives the first guess. From there on the draft feeds on its own states.

    committed   a b c d e            e is pending
    cache       (a,b)                m = 1 pair
    waiting     f_b f_c f_d          fused features of positions m, m + 1, ..
    first pass  (b,c) (c,d) (d,e)    -> guess x; into the cache once the verdict is heard
    then        (s,x) (s',y) ..      one guess a step, K - 1 times; dropped afterwards
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from specjax.core.cache import Block, Cache
from specjax.core.cache.block import drop_first, put, widen
from specjax.core.sharding import constrain
from specjax.core.types import Array, Kept, Proposal, one_line, pytree, static
from specjax.core.view import View, causal
from specjax.drafters.base import Context, check_fits, check_kind, check_num_draft
from specjax.drafters.drawing import count_guess, draw, onto_target
from specjax.drafters.eagle3.kind import Eagle3Kind
from specjax.drafters.eagle3.net import Eagle3Config, Eagle3Net
from specjax.drafters.spec import Outline, Sizes
from specjax.models.config import DecoderConfig, dense_like
from specjax.models.frozen import Frozen
from specjax.models.layers.attention import looking_back
from specjax.models.target import Target
from specjax.models.vocabulary import Vocabulary
from specjax.sampling import Counts


@dataclasses.dataclass(frozen=True, eq=False)
class Eagle3(Eagle3Kind):
    """An EAGLE-3 network as a drafter, before it is known what it will draft for.

    Attributes:
      net: of an `Eagle3Net`.
      num_draft: K, guesses a cycle.
      kind: how they are drawn, see `drafters.drawing`; None: what suits the request.
      target_ids: [V_draft] int32, the target's id of each draft id; None: the two are the same.
      name: for messages.
    """

    net: Frozen
    num_draft: int = 5
    kind: str | None = None
    target_ids: Array | None = None
    name: str = "eagle3"

    __repr__ = one_line

    def bind(self, target: Target, kind: str) -> Eagle3Drafter:
        """The drafter for ``target``; ``kind`` is what to use where the user did not say.

        Raises:
          ValueError: if the two do not fit.
        """
        config: Eagle3Config = self.net.config
        check_num_draft(self.num_draft)
        check_kind(self.kind)
        check_fits(
            self.name,
            target,
            vocab_size=config.backbone.vocab_size,
            target_hidden_size=config.target_hidden_size,
            taps=config.taps,
        )
        check_target_ids(self.name, self.target_ids, config)
        if not config.own_embedding and config.backbone.hidden_size != target.config.hidden_size:
            raise ValueError(
                f"{self.name} has width {config.backbone.hidden_size} and no embedding of its own, "
                f"but that of {target.name} has width {target.config.hidden_size}."
            )
        vocabulary = target.net.vocabulary
        return Eagle3Drafter(
            self.net, vocabulary, self.target_ids, self.num_draft, self.kind or kind
        )

    @classmethod
    def fresh(
        cls,
        target: Target,
        *,
        num_draft: int,
        seed: int = 0,
        kind: str | None = None,
        target_ids: Any = None,
        **sizes: Any,
    ) -> Eagle3:
        """A randomly initialised one whose head is the target's own, see `fresh_config`."""
        ids = None if target_ids is None else jnp.asarray(target_ids, jnp.int32)
        rows = target.config.vocab_size if ids is None else len(ids)
        config = fresh_config(target.config, draft_vocab_size=rows, **sizes)
        check_target_ids("eagle3", ids, config)
        net = Eagle3Net(config, dtype=target.dtype, rngs=nnx.Rngs(seed))
        head = target.net.vocabulary.output
        net.lm_head.weight[...] = (head if ids is None else head[ids]).astype(target.dtype)
        return cls(Frozen.of(net), num_draft, kind, ids)

    @classmethod
    def outline(cls, target: Any, sizes: Sizes) -> Outline:
        """One layer and a vocabulary of its own, as SafeAILab publishes them."""
        rows = sizes.vocab or target.vocab_size
        if not 1 <= rows <= target.vocab_size or rows % sizes.shards:
            raise ValueError(
                f"draft_vocab={rows}: must be a multiple of {sizes.shards}, the devices of the "
                f"model axis, and at most {target.vocab_size}."
            )
        config = fresh_config(target, draft_vocab_size=rows, layers=sizes.layers or 1)
        return Outline(Eagle3Net, config, {"target_ids": np.arange(rows, dtype=np.int32)})


@pytree
class Pairs:
    """What an `Eagle3Drafter` knows of the text. ``cache.length + waiting == length - 1``."""

    cache: Cache  # of the pairs that were read
    features: Array  # [B, K + 1, D], fused, of positions cache.length, cache.length + 1, ..
    waiting: Array  # [B] int32, how many of them count


@pytree
class Held:
    """What `Eagle3Drafter` knows of a cycle until its verdict."""

    state: Pairs
    block: Block  # of the pairs that were waiting, [B, .., K + 1, .]


@pytree
class Eagle3Drafter:
    """The cycle's side of `Eagle3`."""

    net: Any  # models.Frozen of an Eagle3Net
    vocabulary: Vocabulary  # the target's own tables
    target_ids: Array | None
    num_draft: int = static()
    kind: str = static()

    @property
    def taps(self) -> tuple[int, ...]:
        found: tuple[int, ...] = self.net.config.taps
        return found

    def init(self, rows: int, slots: int) -> Pairs:
        shape = (rows, self.num_draft + 1, self.net.config.backbone.hidden_size)
        features = jnp.zeros(shape, self.net.module.dtype)
        return keep(self.net.init_cache(rows, slots), features, jnp.zeros((rows,), jnp.int32))

    def prefill(self, state: Pairs, tokens: Array, count: Array, features: Array | None) -> Pairs:
        # The chunk's first token belongs to the last feature of the chunk before. The very first
        # one has none: a place that nobody sees, dropped before the commit.
        first = state.waiting == 0
        skipped = first.astype(jnp.int32)
        fused = self._fuse(features)
        x = jnp.concatenate([state.features[:, :1], fused[:, :-1]], axis=1)
        place = jnp.arange(x.shape[1])
        hidden = first[:, None, None] & (place == 0)[None, None, :]
        view = View(place[None, :] - skipped[:, None], causal(len(place)) & ~hidden)
        _, _, block = self._read(x, tokens, state.cache, view)
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
        fed_back, normed, block = self._read(features, tokens, cache, View(first, causal(width)))
        last = (pairs - 1)[:, None, None]
        fed = jnp.take_along_axis(fed_back, last, axis=1)
        normed = jnp.take_along_axis(normed, last, axis=1)
        guess, law = self._draw(normed, jnp.int32(0), context.counts, context)

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
            fed, normed, new = self._read(fed, guess[:, None], cache, view, block)
            guess, law = self._draw(normed, i, counts, context)
            return (guess, fed, put(block, new, width + i - 1), counts), (guess, law)

        carry = (guess, fed, widen(block, width + self.num_draft - 1), context.counts)
        _, rest = jax.lax.scan(step, carry, jnp.arange(1, self.num_draft))
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
            jnp.where(active[:, None, None], self._fuse(kept.features), state.features),
            jnp.where(active, kept.count, state.waiting),
        )

    def cut(self, state: Pairs, length: Array) -> Pairs:
        # Pairs 0 .. length - 1, the last of them with the first token that is fed again: so none
        # is missing before the features of that token, and none waits.
        return keep(state.cache.cut(length), state.features, jnp.zeros_like(state.waiting))

    def grow(self, state: Pairs, slots: int) -> Pairs:
        return dataclasses.replace(state, cache=state.cache.grow(slots))

    def _fuse(self, features: Array | None) -> Array:
        assert features is not None
        found: Array = self.net.module.fuse(features)
        return found

    def _read(
        self, x: Array, tokens: Array, cache: Cache, view: View, before: Block | None = None
    ) -> tuple[Array, Array, Block]:
        """Runs the draft over pairs of ``x`` [B, T, D] and ``tokens`` [B, T] behind the cache."""
        own = self.net.config.own_embedding
        net = self.net.module
        embedded = net.embed_tokens(tokens) if own else self.vocabulary.embed(tokens)
        positions = view.positions(cache.length)
        found: tuple[Array, Array, tuple[tuple[Array, ...], ...]] = net(
            x, embedded, positions, looking_back(cache, view, before)
        )
        return found

    def _draw(
        self, normed: Array, index: Array, counts: Counts | None, context: Context
    ) -> tuple[Array, Array | None]:
        """Guess ``index`` [B] from states [B, 1, D]; its law [B, V] if sampled."""
        logits = self.net.module.head(normed[:, 0])
        logits = onto_target(logits, self.target_ids, self.vocabulary.output.shape[0])
        return draw(logits, self.kind, index, counts, context)


def keep(cache: Cache, features: Array, waiting: Array) -> Pairs:
    """The state, split over the rows of a mesh like the rest of a batch's."""
    return Pairs(cache, constrain(features, "batch", None, None), constrain(waiting, "batch"))


def check_target_ids(name: str, target_ids: Array | None, config: Eagle3Config) -> None:
    """Raises ValueError unless the ids name a different token of the target for each draft id."""
    rows, vocab = config.draft_vocab_size, config.backbone.vocab_size
    if target_ids is None:
        if rows != vocab:
            raise ValueError(
                f"{name} guesses over {rows} tokens of the target's {vocab}: say which they are "
                "(target_ids)."
            )
        return
    ids = np.asarray(target_ids)
    if ids.shape != (rows,):
        raise ValueError(f"{name} has {rows} draft tokens, but target_ids has shape {ids.shape}.")
    if ids.min() < 0 or ids.max() >= vocab or len(np.unique(ids)) != rows:
        raise ValueError(f"{name}: target_ids must be {rows} different ids from 0 to {vocab - 1}.")


def default_taps(num_layers: int) -> tuple[int, int, int]:
    """After layers 2, L/2 and L - 3, as the authors chose; evenly spread in a shallow target."""
    if num_layers >= 7:
        return (2, num_layers // 2, num_layers - 3)
    last = max(num_layers - 1, 1)
    return (1, (1 + last) // 2, last)


def fresh_config(
    target: DecoderConfig,
    *,
    draft_vocab_size: int,
    layers: int = 1,
    taps: tuple[int, ...] | None = None,
    intermediate_size: int | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    **variant: bool,
) -> Eagle3Config:
    """A config of the target's own width, whose embedding it borrows.

    Args:
      target: its config.
      draft_vocab_size: rows of the head.
      layers: of the draft.
      taps: indices into hidden_states; None: `default_taps`.
      intermediate_size, num_heads, num_kv_heads, head_dim: by default the target's.
      **variant: further fields of `Eagle3Config`.
    """
    backbone = dense_like(
        target,
        "llama",
        layers=layers,
        intermediate_size=intermediate_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
    )
    return Eagle3Config(
        backbone=backbone,
        taps=tuple(taps) if taps else default_taps(target.num_layers),
        target_hidden_size=target.hidden_size,
        draft_vocab_size=draft_vocab_size,
        **variant,
    )
