"""An independent, smaller language model (Leviathan et al. 2023; Chen et al. 2023).

Its state is its cache, which is only ever appended to. Between cycles it misses the pending token
and, after a cycle whose guesses were all right, the last of those, which was never fed. So the
first draft step of a cycle is two tokens wide: feeding the missing one together with the pending
one costs a narrow pass less than a step of its own. Where nothing is missing the first of the two
is padding that nobody sees. What was fed waits in a block until the verdict; what was kept of it is
committed.

    committed   a b c d     length 4, cache length 3 (2 if c was the last guess of its cycle)
    feed        . d         -> law of the first guess; then one guess a step, K - 1 times
    block       . d x y     place i at depth i - 1 (i, if c is fed)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core.cache import Block, Cache
from specjax.core.cache.block import drop_first, put, widen
from specjax.core.family import Family
from specjax.core.types import KINDS, Array, Kept, Proposal, one_line, pytree, static
from specjax.core.view import View, causal
from specjax.drafters.base import (
    Context,
    check_min_confidence,
    check_num_draft,
    doubling_widths,
)
from specjax.drafters.drawing import Best, confidence, count_guess, draw
from specjax.drafters.spec import Spec
from specjax.drafters.vocabularies import check_same_tokens
from specjax.models.frozen import Frozen
from specjax.models.target import Target
from specjax.sampling import Counts

if TYPE_CHECKING:
    from specjax.drafters.lm.objective import LMObjective

# Feeds guess i - 1 behind a block: (guess [B], block, i []) -> logits [B, V] of guess i, block.
Step = Callable[[Array, Block, Array], tuple["Heard", Block]]


def last_two(tokens: Array, length: Array) -> Array:
    """The last two committed tokens [2] of one row; the first twice if there is but one."""
    return tokens[jnp.maximum(length - 2 + jnp.arange(2), 0)]


@dataclasses.dataclass(frozen=True)
class LM(Spec):
    """A loaded draft model as a drafter, before it is known what it will draft for.

    Attributes:
      model: the draft, as `specjax.load` returns it.
      num_draft: K, guesses a cycle.
      kind: how they are drawn, see `LMDrafter`; None: what suits the temperature and the rule.
      min_confidence: guessing ends, for a row, before the first guess whose law's largest
        probability (`drawing.confidence`) is below this; None: K guesses always.
    """

    model: Any
    num_draft: int = 5
    kind: str | None = None
    min_confidence: float | None = None

    summary = "a smaller language model"
    needs_model = True
    demo = "demo:draft"
    family = Family.MODEL
    nested = True
    __repr__ = one_line

    def bind(self, target: Target, kind: str) -> LMDrafter:
        """The drafter for ``target``; ``kind`` is what to use where the user did not say.

        Raises:
          ValueError: if target and draft do not speak the same tokens or share a mesh.
        """
        check_num_draft(self.num_draft)
        check_min_confidence(self.min_confidence)
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
        least = None if self.min_confidence is None else jnp.float32(self.min_confidence)
        return LMDrafter(self.model.net, self.num_draft, self.kind or kind, size, least)

    @classmethod
    def made(cls, loaded: Any, num_draft: int | None) -> LM:
        """Takes a model, or another drafter of this kind."""
        if isinstance(loaded, cls):
            return loaded if num_draft is None else dataclasses.replace(loaded, num_draft=num_draft)
        return cls(loaded, 5 if num_draft is None else num_draft)

    @classmethod
    def objective(cls) -> type[LMObjective]:
        from specjax.drafters.lm.objective import LMObjective

        return LMObjective

    def own_model(self) -> Any:
        return self.model

    def own_net(self) -> Frozen:
        made: Frozen = self.model.net
        return made

    def with_net(self, net: Frozen) -> LM:
        dtype = np.dtype(jax.tree.leaves(net.params)[0].dtype)
        model = dataclasses.replace(self.model, net=net, dtype=dtype)
        return dataclasses.replace(self, model=model)

    def passes(self, num_draft: int) -> int:
        return num_draft

    def tokens_fed(self, num_draft: int) -> int:
        return num_draft + 1  # the first step is two wide


@pytree
class Held:
    """What `LMDrafter` knows of a cycle until its verdict."""

    cache: Cache
    block: Block  # of the K + 1 tokens that were fed
    padded: Array  # [B] bool: the first of them is padding


@dataclasses.dataclass(frozen=True)
class Heard:
    """What the draft says of a guess."""

    logits: Array  # [B, V]
    best: Best  # [B] int32


@pytree
class Drawn:
    """The guesses of a cycle so far, and what the next one needs."""

    tokens: Array  # [B, K] int32
    laws: Array | None  # [B, K, V]
    wanted: Array  # [B] int32: how many are worth verifying
    going: Array  # [B] bool: the row's next guess may be
    block: Block
    counts: Counts | None


@pytree
class LMDrafter:
    """K guesses, one after the other, by a language model.

    ``kind`` says how they are drawn, see `drafters.drawing`. ``vocab_size`` is the target's where
    the draft has more rows of padding, or fewer. With ``min_confidence`` the drafting ends when no
    row wants another guess (`LM`).
    """

    net: Any  # models.Frozen
    num_draft: int = static()
    kind: str = static()
    vocab_size: int | None = static(default=None)
    min_confidence: Array | None = None  # [] float32

    taps = ()

    @property
    def widths(self) -> tuple[int, ...]:
        whole = (self.num_draft,)
        return whole if self.min_confidence is None else doubling_widths(self.num_draft)

    def init(self, rows: int, slots: int) -> Cache:
        cache: Cache = self.net.init_cache(rows, slots)
        return cache

    def prefill(self, state: Cache, tokens: Array, count: Array, features: Array | None) -> Cache:
        del features
        return state.commit(self.net(self._known(tokens), state).block, count)

    def propose(self, state: Cache, context: Context) -> tuple[Proposal, Held]:
        cache, width = state, self.num_draft + 1
        padded = cache.length == context.length - 1  # [B]: nothing is missing
        place = jnp.arange(width)
        depth = place[None, :] - padded.astype(jnp.int32)[:, None]  # [B, K + 1]
        real = (~padded[:, None] | (place > 0)[None, :])[:, None, :]  # [B, 1, K + 1]
        pair = jax.vmap(last_two)(context.tokens, context.length)
        # (Padding sees itself: what sees nothing at all would take in whatever lies in memory.)
        itself = jnp.eye(2, dtype=jnp.bool_)[None]
        view = View(depth[:, :2], causal(2) & (real[:, :, :2] | itself))
        out = self.net(self._known(pair), cache, view=view)

        def step(guess: Array, block: Block, i: Array) -> tuple[Heard, Block]:
            """Feeds guess ``i - 1``: what is known of guess ``i``, and the block with it."""
            here = i + 1 - padded.astype(jnp.int32)[:, None]
            seen = real & (place <= i)[None, None, :]
            view = View(
                jnp.concatenate([depth, here], axis=1),
                jnp.pad(seen, ((0, 0), (0, 0), (0, 1)), constant_values=True),
            )
            out = self.net(guess[:, None], cache, view=view, before=block)
            return self._heard(out.hidden[:, 0]), put(block, out.block, i + 1, self.net.platform)

        heard, block = self._heard(out.hidden[:, -1]), widen(out.block, width)
        if self.min_confidence is not None:
            drawn = self._while_worth(heard.logits, block, step, context)
            proposal = Proposal(tokens=drawn.tokens, q=drawn.laws, wanted=drawn.wanted)
            return proposal, Held(cache, drawn.block, padded)
        proposal, block = self._always(heard, block, step, context)
        return proposal, Held(cache, block, padded)

    def _always(
        self, heard: Heard, block: Block, step: Step, context: Context
    ) -> tuple[Proposal, Block]:
        """K guesses."""

        def drawn(heard: Heard, i: Array, counts: Counts | None) -> tuple[Array, Array | None]:
            return draw(heard.logits, self.kind, i, counts, context, heard.best)

        guess, law = drawn(heard, jnp.int32(0), context.counts)

        def body(carry: tuple[Array, Block, Counts | None], i: Array) -> Any:
            guess, block, counts = carry
            counts = count_guess(counts, guess)
            heard, block = step(guess, block, i)
            guess, law = drawn(heard, i, counts)
            return (guess, block, counts), (guess, law)

        carry = (guess, block, context.counts)
        (_, block, _), rest = jax.lax.scan(body, carry, jnp.arange(1, self.num_draft))
        guesses, q = jax.tree.map(
            lambda first, more: jnp.concatenate([first[:, None], more.swapaxes(0, 1)], axis=1),
            (guess, law),
            rest,
        )
        return Proposal(tokens=guesses, q=q), block

    def _while_worth(self, logits: Array, block: Block, step: Step, context: Context) -> Drawn:
        """At least one guess and at most K, until no row wants another."""

        def take(drawn: Drawn, logits: Array, i: Array) -> Drawn:
            """Draws guess ``i``; whether it is worth verifying is known before it is drawn."""
            assert self.min_confidence is not None
            sure = confidence(logits, drawn.counts, context) >= self.min_confidence
            going = drawn.going & sure
            guess, law = draw(logits, self.kind, i, drawn.counts, context)
            laws = None
            if law is not None:
                empty = jnp.zeros((len(law), self.num_draft, law.shape[1]), law.dtype)
                laws = empty if drawn.laws is None else drawn.laws
                laws = jax.lax.dynamic_update_slice_in_dim(laws, law[:, None], i, axis=1)
            return Drawn(
                jax.lax.dynamic_update_slice_in_dim(drawn.tokens, guess[:, None], i, axis=1),
                laws,
                drawn.wanted + going.astype(jnp.int32),
                going,
                drawn.block,
                count_guess(drawn.counts, guess),
            )

        def body(carry: tuple[Array, Drawn]) -> tuple[Array, Drawn]:
            i, drawn = carry
            guess = jax.lax.dynamic_index_in_dim(drawn.tokens, i - 1, axis=1, keepdims=False)
            heard, block = step(guess, drawn.block, i)
            return i + 1, take(dataclasses.replace(drawn, block=block), heard.logits, i)

        def worth(carry: tuple[Array, Drawn]) -> Array:
            i, drawn = carry
            return (i < self.num_draft) & drawn.going.any()

        rows = len(logits)
        none = jnp.full((rows, self.num_draft), -1, jnp.int32)
        going = jnp.ones((rows,), bool) if context.done is None else ~context.done
        first = Drawn(none, None, jnp.zeros((rows,), jnp.int32), going, block, context.counts)
        first = take(first, logits, jnp.int32(0))
        return jax.lax.while_loop(worth, body, (jnp.int32(1), first))[1]

    def _heard(self, x: Array) -> Heard:
        """States [B, D] -> what they say over the target's vocabulary."""
        logits: Array = self.net.head(x)
        if self.vocab_size is None:
            return Heard(logits, lambda: self.net.likeliest(x))
        lacking = max(self.vocab_size - logits.shape[-1], 0)
        logits = jnp.pad(logits, ((0, 0), (0, lacking)), constant_values=-jnp.inf)
        return Heard(logits[:, : self.vocab_size], lambda: None)

    def _known(self, tokens: Array) -> Array:
        """Tokens as the draft can look them up: of those it has no row for, its last one."""
        if self.vocab_size is None:
            return tokens
        return jnp.minimum(tokens, self.net.config.vocab_size - 1)

    def update(self, held: Held, kept: Kept) -> Cache:
        # Guess K was never fed; of fewer guesses the last is not worth verifying.
        count = jnp.where(held.padded, 0, 1) + jnp.minimum(kept.count, self.num_draft)
        block = drop_first(held.block, held.padded)
        count = jnp.where(kept.count > 0, count, 0)
        return held.cache.commit(block, count, after=kept.tokens[:, -1])

    def cut(self, state: Cache, length: Array) -> Cache:
        return state.cut(length)

    def grow(self, state: Cache, slots: int) -> Cache:
        return state.grow(slots)
