"""A drafter that is the target itself, asked for several tokens at once through an adapter."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

import specjax
from specjax.core.types import Array, Kept, Proposal, pytree, static
from specjax.drafters.base import Context
from specjax.drafters.drawing import draw_all


@pytree
class SelfDraft:
    """The whole target, once, over [pending, m, m, ..]; the tokens m pass through the adapters."""

    adapters: dict[str, tuple[Array, Array]]  # of weights, by path: down [rank, I], up [O, rank]
    mask: int = static()  # m
    num_draft: int = static()
    kind: str = static(default="one_hot")

    taps = ()

    @classmethod
    def of(cls, target: specjax.Model, num_draft: int, *, rank: int = 2) -> SelfDraft:
        """With random adapters of every matrix of the layers but one: latent attention's keys and
        values are never formed, so that the weight they would come from is no token's factor."""
        rng = np.random.default_rng(5)
        new = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
        flat = [(".".join(map(str, p)), w) for p, w in nnx.to_flat_state(target.net.params)]
        adapters = {
            name: (new(rank, w.shape[1]), new(w.shape[0], rank))
            for name, w in flat
            if name.startswith("layers.") and name.endswith("_proj.weight")
            if "kv_b_proj" not in name
        }
        return cls(adapters, target.config.vocab_size - 1, num_draft)

    def bind(self, target: Any, kind: str) -> SelfDraft:
        return dataclasses.replace(self, kind=kind)

    def init(self, rows: int, slots: int) -> Any:
        return ()

    def prefill(self, draft: Any, tokens: Array, count: Array, features: Any) -> Any:
        return draft

    def propose(self, draft: Any, context: Context) -> tuple[Proposal, Any]:
        assert context.target is not None
        asking = jnp.arange(self.num_draft) > 0
        net = context.target.net.adapted(self.adapters, asking)
        tokens = jnp.where(asking[None, :], self.mask, context.pending)  # [B, K]
        logits = net.head(net(tokens, context.target.cache).hidden)
        guesses, q = draw_all(logits, self.kind, context)
        return Proposal(guesses, q), draft

    def update(self, held: Any, kept: Kept) -> Any:
        return held

    def grow(self, draft: Any, slots: int) -> Any:
        return draft
