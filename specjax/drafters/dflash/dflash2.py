"""DFlash2 (Inco AI and Z Lab 2026, inco.ai/blog/dflash2): DFlash whose guesses agree.

The network's convolutions are in `drafters/dflash/heads.py`. Here is the walk: the likeliest C
tokens of each slot are kept, and from the anchor on one of them is chosen after the other, by a
score that also looks at the token before it. Drawn from the softmax of the scores, a guess has a
law q that is known exactly and is zero off the C candidates.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.types import Array, Proposal, one_line, pytree
from specjax.drafters.base import Context, check_kind
from specjax.drafters.dflash.drafter import (
    DFlashDrafter,
    fresh_config,
    fresh_net,
    parts,
    refuse,
)
from specjax.drafters.dflash.kind import DFlashKind
from specjax.drafters.drawing import count_guess, draw
from specjax.models.frozen import Frozen
from specjax.models.target import Target


@dataclasses.dataclass(frozen=True, eq=False)
class DFlash2(DFlashKind):
    """A network with a candidate selector as a drafter; attributes as in `DFlash`.

    ``kind`` says how guesses are drawn; None: what suits the temperature and the rule.
    """

    net: Frozen
    num_draft: int | None = None
    kind: str | None = None
    target_ids: Array | None = None
    name: str = "dflash2"

    summary = "DFlash with convolutions and a candidate selector"
    __repr__ = one_line

    def bind(self, target: Target, kind: str) -> DFlash2Drafter:
        """The drafter for ``target``. Raises ValueError if the two do not fit."""
        check_kind(self.kind)
        refuse(self.name, self.net.config, markov_rank="DSpark")
        if not self.net.config.selector_rank:
            raise ValueError(f"{self.name} has no candidate selector: use drafters.DFlash.")
        if self.target_ids is not None:
            raise ValueError(f"{self.name}: a selector over a reduced vocabulary is not supported.")
        return DFlash2Drafter(*parts(self, target), self.kind or kind)

    @classmethod
    def fresh(
        cls,
        target: Target,
        *,
        num_draft: int,
        seed: int = 0,
        from_target: bool | None = False,
        **sizes: Any,
    ) -> DFlash2:
        """A randomly initialised one for ``target``, as `DFlash.fresh`."""
        defaults = {
            "conv_kernel_size": 2,
            "conv_group_size": 16 if target.config.hidden_size % 16 == 0 else 1,
            "selector_rank": min(256, target.config.hidden_size),
            "selector_top_k": min(16, target.config.vocab_size),
        }
        config = fresh_config(target.config, num_draft, **{**defaults, **sizes})
        return cls(fresh_net(config, target, seed, from_target))


@pytree
class DFlash2Drafter(DFlashDrafter):
    """`DFlashDrafter` with the walk over candidates."""

    def propose(self, draft: Any, context: Context) -> tuple[Proposal, Any]:
        h = self.states(draft, context)
        unary, candidates = jax.lax.top_k(self.logits(h), self.config.selector_top_k)  # [B, K, C]
        selector = self._selector()
        gates = selector.gate(h)
        vocab = self.vocabulary.output.shape[0]
        previous = context.pending[:, 0]

        def step(carry: Any, inputs: Any) -> Any:
            previous, counts = carry
            i, unary, candidates, gate = inputs
            scores = selector.score(unary, previous, gate, candidates)
            full = jnp.full((scores.shape[0], vocab), -jnp.inf, scores.dtype)
            rows = jnp.arange(scores.shape[0])[:, None]
            full = full.at[rows, candidates].set(scores, unique_indices=True)
            guess, law = draw(full, self.kind, i, counts, context)
            return (guess, count_guess(counts, guess)), (guess, law)

        slots = (
            jnp.arange(self.num_draft),
            *(x.swapaxes(0, 1) for x in (unary, candidates, gates)),
        )
        _, (guesses, laws) = jax.lax.scan(step, (previous, context.counts), slots)
        q = None if laws is None else laws.swapaxes(0, 1)
        return Proposal(tokens=guesses.swapaxes(0, 1), q=q), draft

    def _selector(self) -> Any:
        return self.net.module.candidate_selector
