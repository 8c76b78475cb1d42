"""Early exit (LayerSkip, Elhoushi et al. 2024, arXiv:2404.16710): the target drafts for itself.

Its first layers and its head guess, over its own cache, which holds what those layers remember of
the text already. Nothing is kept between cycles: what the guesses leave is dropped, and the
target's own pass commits them.

    committed   a b c d       the target's cache holds a b c
    feed        d             -> law of the first guess; then one guess a step, K - 1 times
    block       d x y         read by the steps behind it, and dropped

A target that was not trained for it (LayerSkip's was, with layer dropout and a loss at every
layer) says little after a few layers; a small trained adapter before the head brings much of it
back.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.core.cache import Block
from specjax.core.cache.block import put, widen
from specjax.core.types import Array, Kept, Proposal, one_line, pytree, static
from specjax.core.view import View
from specjax.drafters.base import Context, check_fits, check_kind, check_num_draft
from specjax.drafters.drawing import count_guess, draw
from specjax.drafters.early_exit.net import ExitConfig, ExitNet
from specjax.drafters.spec import Spec
from specjax.models.frozen import Frozen
from specjax.models.target import Target
from specjax.sampling import Counts

if TYPE_CHECKING:
    from specjax.drafters.early_exit.objective import EarlyExitObjective


@dataclasses.dataclass(frozen=True, eq=False)
class EarlyExit(Spec):
    """The target's first layers as a drafter, before it is known which target.

    Attributes:
      depth: how many layers; None: those that the adapter was made for, without one a quarter.
      num_draft: K, guesses a cycle.
      kind: how they are drawn, see `drafters.drawing`; None: what suits the request.
      net: the adapter, of an `ExitNet`; None: the target's own head reads the state as it is.
      name: for messages.
    """

    depth: int | None = None
    num_draft: int = 3
    kind: str | None = None
    net: Frozen | None = None
    name: str = "early_exit"

    summary = "the target's own first layers; early_exit:DEPTH:K or early_exit:CHECKPOINT"
    may_load = True
    nested = True
    net_class = ExitNet
    __repr__ = one_line

    def bind(self, target: Target, kind: str) -> EarlyExitDrafter:
        """The drafter for ``target``; ``kind`` is what to use where the user did not say.

        Raises:
          ValueError: if the two do not fit.
        """
        check_num_draft(self.num_draft)
        check_kind(self.kind)
        layers, depth = target.config.num_layers, self.depth
        if self.net is not None:
            config: ExitConfig = self.net.config
            check_fits(
                self.name,
                target,
                vocab_size=config.vocab_size,
                target_hidden_size=config.hidden_size,
                taps=(),
            )
            if depth not in (None, config.depth):
                raise ValueError(
                    f"depth={depth}: the adapter of {self.name} reads the state behind "
                    f"{config.depth} layers; leave depth out."
                )
            depth = config.depth
        depth = max(layers // 4, 1) if depth is None else depth
        if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= layers:
            raise ValueError(
                f"depth={depth!r}: {self.name} runs at least one layer of {target.name}, which has "
                f"{layers}."
            )
        return EarlyExitDrafter(self.net, depth, self.num_draft, self.kind or kind)

    @classmethod
    def fresh(  # type: ignore[override]
        cls,
        target: Target,
        *,
        num_draft: int,
        seed: int = 0,
        depth: int | None = None,
        rank: int = 64,
        kind: str | None = None,
    ) -> EarlyExit:
        """With an adapter that changes nothing yet."""
        depth = cls(depth, num_draft).bind(target, "one_hot").depth
        c = target.config
        net = ExitNet(
            ExitConfig(c.hidden_size, c.vocab_size, depth, rank),
            dtype=target.dtype,
            rngs=nnx.Rngs(seed),
        )
        return cls(None, num_draft, kind, Frozen.of(net))

    @classmethod
    def said(cls, text: str) -> EarlyExit | None:
        """``early_exit:2`` and the like: so many layers."""
        return cls(int(text)) if text.isascii() and text.isdecimal() else None

    @classmethod
    def objective(cls) -> type[EarlyExitObjective]:
        from specjax.drafters.early_exit.objective import EarlyExitObjective

        return EarlyExitObjective

    def passes(self, num_draft: int) -> int:
        return num_draft

    def tokens_fed(self, num_draft: int) -> int:
        return num_draft

    def target_passes(self, target: Target, num_draft: int) -> tuple[Frozen, int]:
        return target.net.first(self.bind(target, "one_hot").depth), num_draft


@pytree
class EarlyExitDrafter:
    """The cycle's side of `EarlyExit`. It remembers nothing."""

    net: Any  # models.Frozen of an `ExitNet`, or None
    depth: int = static()
    num_draft: int = static()
    kind: str = static()

    taps = ()

    def init(self, rows: int, slots: int) -> Any:
        del rows, slots
        return ()

    def prefill(self, draft: Any, tokens: Array, count: Array, features: Array | None) -> Any:
        del tokens, count, features
        return draft

    def propose(self, draft: Any, context: Context) -> tuple[Proposal, Any]:
        assert context.target is not None
        net = context.target.net.first(self.depth)
        cache = context.target.cache.first(self.depth)
        place = jnp.arange(self.num_draft)

        def guess_behind(x: Array, i: Array, counts: Counts | None) -> tuple[Array, Array | None]:
            """Guess ``i`` [B] from final states ``x`` [B, D]; its law [B, V] if sampled."""
            x = self._adapted(x)
            return draw(net.head(x), self.kind, i, counts, context, lambda: net.likeliest(x))

        def step(carry: tuple[Array, Block, Counts | None], i: Array) -> Any:
            guess, block, counts = carry
            counts = count_guess(counts, guess)
            depth = jnp.append(place, i)[None, :]
            seen = jnp.append(place < i, True)[None, None, :]
            out = net(guess[:, None], cache, view=View(depth, seen), before=block)
            guess, law = guess_behind(out.hidden[:, 0], i, counts)
            return (guess, put(block, out.block, i, net.platform), counts), (guess, law)

        out = net(context.pending, cache)
        first = guess_behind(out.hidden[:, 0], jnp.int32(0), context.counts)
        carry = (first[0], widen(out.block, self.num_draft), context.counts)
        _, rest = jax.lax.scan(step, carry, place[1:])
        guesses, q = jax.tree.map(
            lambda x, more: jnp.concatenate([x[:, None], more.swapaxes(0, 1)], axis=1), first, rest
        )
        return Proposal(tokens=guesses, q=q), draft

    def _adapted(self, x: Array) -> Array:
        if self.net is None:
            return x
        found: Array = self.net.module(x)
        return found

    def update(self, held: Any, kept: Kept) -> Any:
        del kept
        return held

    def grow(self, draft: Any, slots: int) -> Any:
        del slots
        return draft
