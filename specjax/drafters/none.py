"""No guesses: plain decoding through the same loop, the baseline of every comparison."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from specjax.core.family import Family
from specjax.core.types import Array, Kept, Proposal, pytree
from specjax.drafters.base import Context
from specjax.drafters.spec import Spec


@pytree
class NoDraft(Spec):
    summary = "no guesses: plain decoding"
    family = Family.NONE
    num_draft = 0
    kind = "one_hot"
    taps = ()

    @classmethod
    def made(cls, loaded: Any, num_draft: int | None) -> NoDraft:
        del loaded, num_draft
        return cls()

    def passes(self, num_draft: int) -> int:
        del num_draft
        return 0

    def bind(self, target: Any, kind: str) -> NoDraft:
        del target, kind
        return self

    def init(self, rows: int, slots: int) -> Any:
        del rows, slots
        return ()

    def prefill(self, draft: Any, tokens: Array, count: Array, features: Array | None) -> Any:
        del tokens, count, features
        return draft

    def propose(self, draft: Any, context: Context) -> tuple[Proposal, Any]:
        rows = context.tokens.shape[0]
        return Proposal(tokens=jnp.zeros((rows, 0), jnp.int32), q=None), draft

    def update(self, held: Any, kept: Kept) -> Any:
        del kept
        return held

    def grow(self, draft: Any, slots: int) -> Any:
        del slots
        return draft
