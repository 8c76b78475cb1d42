"""Training the adapter of an early exit: it is asked for what the whole target says.

At every position the law of the exit is compared with the target's own of the same token, in the
sense of one of `losses.DIVERGENCES`, mixed with the cross entropy of the text's token. The target
stays as it is. Logits over the vocabulary exist for one chunk of positions at a time.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from specjax.core.sharding import constrain
from specjax.core.types import Array
from specjax.drafters.early_exit.net import ExitConfig
from specjax.models.frozen import Frozen
from specjax.train import losses
from specjax.train.chunks import cut, over_chunks, positions_at_once, shares
from specjax.train.objectives.base import Batch, ahead, valid
from specjax.train.state import Params, Skeleton


@dataclasses.dataclass(frozen=True, eq=False)
class EarlyExitObjective:
    """Attributes:
    divergence: name of one of `losses.DIVERGENCES`.
    cross_entropy: weight of the cross entropy; the divergence has the rest.
    temperature: of both laws in the divergence: the one that will be sampled at.
    chunk: positions of a row whose logits exist at once; 0: as many as have room.
    """

    unpacked: ClassVar[str] = ""

    skeleton: Skeleton
    config: ExitConfig
    compute_dtype: Any
    num_draft: int
    target_ids: Any = None
    divergence: str = "forward_kl"
    cross_entropy: float = 0.0
    temperature: float = 1.0
    chunk: int = 0

    def __post_init__(self) -> None:
        if self.target_ids is not None:
            raise ValueError("An early exit has the target's vocabulary: no target_ids.")
        if self.divergence not in losses.DIVERGENCES:
            known = ", ".join(losses.DIVERGENCES)
            raise ValueError(f"objective.divergence={self.divergence!r}: known: {known}.")
        if not 0 <= self.cross_entropy <= 1:
            raise ValueError(f"objective.cross_entropy={self.cross_entropy} is not in [0, 1].")
        if self.temperature <= 0:
            raise ValueError(f"objective.temperature={self.temperature} must be positive.")
        if self.chunk < 0:
            raise ValueError(f"objective.chunk={self.chunk} must not be negative.")

    def __call__(
        self, params: Params, batch: Batch, target: Frozen, key: Array
    ) -> tuple[Array, Array, dict[str, Array]]:
        """See `Objective`. Nothing is random."""
        del key
        params = {name: p.astype(self.compute_dtype) for name, p in params.items()}
        tokens = constrain(batch.tokens, "batch", None)
        final = jax.lax.stop_gradient(target(tokens, view=batch.view).hidden)
        # Position t answers for token t + 1.
        labels, counted = (ahead(x, 1, batch.begin) for x in (tokens, valid(batch)))

        def one(params: Params, _: Any, given: tuple[Array, ...]) -> Any:
            h, final, labels, counted = given
            adapter = self.skeleton.module(params)
            logits, wanted = target.head(adapter(h)), target.head(final)
            entropy, t = losses.cross_entropy(logits, labels), self.temperature
            loss = self.cross_entropy * entropy
            if self.cross_entropy < 1:
                diverges = losses.DIVERGENCES[self.divergence](wanted / t, logits / t)
                loss = loss + (1 - self.cross_entropy) * diverges
            agree = (logits.argmax(-1) == wanted.argmax(-1)).astype(jnp.float32)
            kept = lambda x: jnp.where(counted, x, 0.0).sum()
            sums = {"cross_entropy": kept(entropy), "agreement": kept(agree)}
            return kept(loss), (counted.astype(jnp.float32).sum(), sums), ()

        parts = self._states(batch, target), final, labels, counted
        total, (weight, sums), _ = over_chunks(one, params, (), self._cut(parts, target))
        return total, weight, sums

    def matches(self, params: Params, batch: Batch, target: Frozen) -> Array:
        """See `Objective`."""
        adapter = self.skeleton.module(params, self.compute_dtype)
        rows, width = batch.tokens.shape
        guess = lambda h: target.head(adapter(h)).argmax(-1)
        guesses = jax.lax.map(guess, self._cut(self._states(batch, target), target))  # [n, B, C]
        guesses = guesses.swapaxes(0, 1).reshape(rows, -1)[:, :width]
        right = guesses[:, :-1] == batch.tokens[:, 1:]
        # Guess i with token t pending is what position t + i says, the text before it being right.
        padded = jnp.pad(right, ((0, 0), (0, self.num_draft + 1)))
        return jnp.stack([padded[:, i : i + width] for i in range(self.num_draft)], axis=-1)

    def _states(self, batch: Batch, target: Frozen) -> Array:
        """[B, T, D]: what the adapter reads."""
        tokens = constrain(batch.tokens, "batch", None)
        return jax.lax.stop_gradient(
            target.first(self.config.depth)(tokens, view=batch.view).hidden
        )

    def _cut(self, tree: Any, target: Frozen) -> Any:
        """[B, T, ...] -> [n, B, C, ...], padded, of every array."""
        rows, width = jax.tree.leaves(tree)[0].shape[:2]
        most = positions_at_once(rows, target.config.vocab_size)
        return jax.tree.map(lambda x: cut(x, self.chunk or shares(width, most)), tree)
