"""A tree drafter that knows the text: it is right along one way down its tree, and wrong elsewhere.

Which way, and how far, follows from where the cycle starts, so that verdicts of every length on
every path come about, whatever the target.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from specjax.core import trees
from specjax.core.types import Array, Parents, Proposal, pytree, static
from specjax.drafters.base import Context
from specjax.drafters.bases import Stateless

TREE = (0, 0, 0, 1, 1, 2, 4, 6)  # eight guesses on three levels


@pytree
class Told(Stateless):
    """``texts`` [B, S] are those that the target will write, prompts included."""

    texts: Array
    vocab: int = static()
    parents: Parents = static(default=TREE)

    @property
    def num_draft(self) -> int:
        return len(self.parents)

    def propose(self, state: Any, context: Context) -> tuple[Proposal, Any]:
        level, rank = trees.depths(self.parents)[1:], trees.ranks(self.parents)
        at = context.length[:, None] + (level - 1)[None, :]
        rows = jnp.arange(len(context.length))
        texts = self.texts[rows % len(self.texts)]
        true = jnp.take_along_axis(texts, jnp.minimum(at, texts.shape[1] - 1), axis=1)
        leaf = (5 * context.length + 3 * rows) % (len(self.parents) + 1)
        right = jnp.asarray(trees.ancestors(self.parents))[leaf, 1:]
        wrong = (true + 1 + rank[None, :]) % self.vocab
        return Proposal(jnp.where(right, true, wrong), parents=self.parents), state


def told(prompts: list[list[int]], texts: list[list[int]], vocab: int) -> Told:
    size = max(len(p) + len(t) for p, t in zip(prompts, texts))
    table = np.zeros((len(prompts), size), np.int32)
    for row, prompt, text in zip(table, prompts, texts):
        row[: len(prompt) + len(text)] = prompt + text
    return Told(jnp.asarray(table), vocab)
