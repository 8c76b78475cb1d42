"""No guesses: plain decoding through the same loop, the baseline of every comparison."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from specjax.core.family import Family
from specjax.core.types import Proposal, pytree
from specjax.drafters.base import Context
from specjax.drafters.bases import Stateless


@pytree
class NoDraft(Stateless):
    summary = "no guesses: plain decoding"
    family = Family.NONE
    num_draft = 0

    @classmethod
    def made(cls, loaded: Any, num_draft: int | None) -> NoDraft:
        del loaded, num_draft
        return cls()

    def passes(self, num_draft: int) -> int:
        del num_draft
        return 0

    def propose(self, state: Any, context: Context) -> tuple[Proposal, Any]:
        rows = context.tokens.shape[0]
        return Proposal(tokens=jnp.zeros((rows, 0), jnp.int32), q=None), state
