"""Training Medusa heads (Cai et al. 2024, arXiv:2401.10774): the target stays as it is (Medusa-1).

With token t pending the heads read the target's final state of token t - 1, and head i guesses
token t + 1 + i. Its loss is the cross entropy with the text, weighted with ``decay ** i``. Logits
over the vocabulary exist for one chunk of positions at a time.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from specjax.core.sharding import constrain
from specjax.core.types import Array
from specjax.drafters.medusa.net import MedusaConfig
from specjax.models.frozen import Frozen
from specjax.train import losses
from specjax.train.chunks import cut, over_chunks, positions_at_once, shares
from specjax.train.objectives.base import Batch, labelled, stack_ahead, states_before
from specjax.train.state import Params, Skeleton

Sums = dict[str, Array]


@dataclasses.dataclass(frozen=True, eq=False)
class MedusaObjective:
    """See the module. The sum of all heads is divided by the labels of head 0."""

    unpacked: ClassVar[str] = ""

    skeleton: Skeleton
    config: MedusaConfig
    compute_dtype: Any = jnp.bfloat16
    target_ids: Any = None
    decay: float = 0.8
    chunk: int = 0  # positions of a row whose logits exist at once; 0: as many as have room

    def __post_init__(self) -> None:
        if self.target_ids is not None:
            raise ValueError("Medusa heads have the target's vocabulary: no target_ids.")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay={self.decay} is not in (0, 1].")
        if self.chunk < 0:
            raise ValueError(f"chunk={self.chunk} must not be negative.")

    @property
    def num_draft(self) -> int:
        return self.config.num_heads

    def __call__(
        self, params: Params, batch: Batch, target: Frozen, key: Array
    ) -> tuple[Array, Array, Sums]:
        """See `Objective`. Nothing is random."""
        del key
        heads = self.num_draft
        # Column 0 of a text has no state: it guesses only behind prompts of one token.
        counted = labelled(batch, heads) & (batch.positions > 0)[..., None]
        params = {name: p.astype(self.compute_dtype) for name, p in params.items()}
        scale = self.decay ** jnp.arange(heads, dtype=jnp.float32)

        def one(params: Params, _: Any, given: tuple[Array, ...]) -> Any:
            h, labels, counted = given
            logits = self.skeleton.module(params)(h, heads)
            loss = jnp.where(counted, losses.cross_entropy(logits, labels), 0.0).sum((0, 1))
            right = (counted & (logits.argmax(-1) == labels)).astype(jnp.float32)
            sums = {"accuracy": right[..., 0].sum(), "accepted": jnp.cumprod(right, -1).sum()}
            return (loss * scale).sum(), (counted[..., 0].astype(jnp.float32).sum(), sums), ()

        labels = stack_ahead(batch.tokens, heads, batch.begin)
        given = self._cut((self._states(batch, target), labels, counted), target)
        total, (weight, sums), _ = over_chunks(one, params, (), given)
        return total, weight, sums

    def matches(self, params: Params, batch: Batch, target: Frozen) -> Array:
        """See `Objective`."""
        net = self.skeleton.module(params, self.compute_dtype)
        rows, width = batch.tokens.shape
        guess = lambda h: net(h, self.num_draft).argmax(-1)
        guesses = jax.lax.map(guess, self._cut(self._states(batch, target), target))  # [n, B, C, K]
        guesses = guesses.swapaxes(0, 1).reshape(rows, -1, self.num_draft)[:, :width]
        found: Array = guesses == stack_ahead(batch.tokens, self.num_draft, batch.begin)
        return found

    def _states(self, batch: Batch, target: Frozen) -> Array:
        """[B, T, D]: with token t pending, the final state of token t - 1; zeros at first."""
        tokens = constrain(batch.tokens, "batch", None)
        final = target(tokens, view=batch.view).hidden
        return states_before(final, batch.begin)

    def _cut(self, tree: Any, target: Frozen) -> Any:
        """[B, T, X] -> [n, B, C, X], padded, of every array."""
        rows, width, _ = jax.tree.leaves(tree)[0].shape
        most = positions_at_once(rows * self.num_draft, target.config.vocab_size)
        return jax.tree.map(lambda x: cut(x, self.chunk or shares(width, most)), tree)


OBJECTIVE = MedusaObjective
