"""Distillation of a draft language model (DistillSpec, Zhou et al. 2023, arXiv:2310.08461).

At every position the draft is asked for the target's law of the next token, in the sense of one of
`losses.DIVERGENCES`, mixed with the cross entropy of the text's own token. The contexts are those
of the data, or, *on-policy*, what the draft itself writes behind a prefix of them: at inference it
reads its own guesses, among which are errors that no data contains.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.noise import gumbel_argmax
from specjax.core.sharding import constrain
from specjax.core.types import Array
from specjax.models.frozen import Frozen
from specjax.train import losses
from specjax.train.chunks import cut, over_chunks, positions_at_once, shares
from specjax.train.objectives.base import Batch, ahead, valid
from specjax.train.state import Params, Skeleton


@dataclasses.dataclass(frozen=True, eq=False)
class LMObjective:
    """Attributes:
    divergence: name of one of `losses.DIVERGENCES`.
    cross_entropy: weight of the cross entropy; the divergence has the rest.
    temperature: of the teacher and the draft in the divergence: the one they will sample at.
    on_policy: the fraction of micro-batches whose contexts the draft writes.
    on_policy_tokens: how many tokens it writes behind each prefix.
    """

    skeleton: Skeleton
    config: Any
    compute_dtype: Any
    num_draft: int
    target_ids: Any = None
    divergence: str = "forward_kl"
    cross_entropy: float = 0.1
    temperature: float = 1.0
    on_policy: float = 0.0
    on_policy_tokens: int = 32

    def __post_init__(self) -> None:
        if self.target_ids is not None:
            raise ValueError("A draft language model has the target's vocabulary: no target_ids.")
        if self.divergence not in losses.DIVERGENCES:
            known = ", ".join(losses.DIVERGENCES)
            raise ValueError(f"objective.divergence={self.divergence!r}: known: {known}.")
        for name in ("cross_entropy", "on_policy"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"objective.{name}={getattr(self, name)} is not in [0, 1].")
        for name in ("temperature", "on_policy_tokens"):
            if getattr(self, name) <= 0:
                raise ValueError(f"objective.{name}={getattr(self, name)} must be positive.")

    @property
    def unpacked(self) -> str:
        """See `BaseObjective`."""
        return "on policy a draft continues one text a row" if self.on_policy else ""

    def __call__(
        self, params: Params, batch: Batch, target: Frozen, key: Array
    ) -> tuple[Array, Array, dict[str, Array]]:
        params = {name: p.astype(self.compute_dtype) for name, p in params.items()}
        coin, noise = jax.random.split(key)
        if self.on_policy:
            frozen = self.skeleton.frozen(jax.lax.stop_gradient(params), self.config)
            batch = jax.lax.cond(
                jax.random.uniform(coin) < self.on_policy,
                lambda: self._continued(frozen, batch, noise),
                lambda: batch,
            )
        tokens = constrain(batch.tokens, "batch", None)
        final = jax.lax.stop_gradient(target(tokens, view=batch.view).hidden)
        states = self.skeleton.module(params)(tokens, view=batch.view).hidden
        # Position t answers for token t + 1; the last one has no label.
        labels, counted = (ahead(x, 1, batch.begin) for x in (tokens, valid(batch)))

        def one(params: Params, h: Array, given: tuple[Array, ...]) -> Any:
            final, labels, counted = given
            logits = self.skeleton.module(params).head(h)
            wanted = jax.lax.stop_gradient(target.head(final))
            return self._positions(logits, wanted, labels, counted)

        rows, width = tokens.shape
        size = shares(width, positions_at_once(rows, target.config.vocab_size))
        given = [cut(x, size) for x in (final, labels, counted)]
        total, (weight, sums), _ = over_chunks(one, params, cut(states, size), tuple(given))
        return total, weight, sums

    def _positions(
        self, logits: Array, wanted: Array, labels: Array, counted: Array
    ) -> tuple[Array, tuple[Array, dict[str, Array]], tuple[()]]:
        """The loss of positions [B, C] that count, how many do, and further sums."""
        entropy = losses.cross_entropy(logits, labels)
        loss = self.cross_entropy * entropy
        if self.cross_entropy < 1:
            t = self.temperature
            diverges = losses.DIVERGENCES[self.divergence](wanted / t, logits / t)
            loss = loss + (1 - self.cross_entropy) * diverges
        agree = logits.argmax(-1) == wanted.argmax(-1)
        sums = {"cross_entropy": entropy, "agreement": agree.astype(jnp.float32)}
        kept = lambda x: jnp.where(counted, x, 0.0).sum()
        weight = counted.astype(jnp.float32).sum()
        return kept(loss), (weight, {name: kept(x) for name, x in sums.items()}), ()

    def _continued(self, draft: Frozen, batch: Batch, key: Array) -> Batch:
        """Each row cut at a random supervised place and continued by the draft itself."""
        rows, width = batch.tokens.shape
        num = min(self.on_policy_tokens, width - 1)
        cut_key, draw_key = jax.random.split(key)
        place = jnp.arange(width)[None, :]
        # A prefix of ``start`` tokens, the first token behind which is supervised.
        fits = batch.supervised & (place >= 1) & (place <= width - num)
        fits = fits & (place < batch.length[:, None])
        scores = jnp.where(fits, jax.random.uniform(cut_key, (rows, width)), -1.0)
        start = jnp.where(fits.any(-1), scores.argmax(-1), 0).astype(jnp.int32)

        cache = draft.init_cache(rows, width)
        cache = cache.commit(draft(batch.tokens, cache).block, jnp.maximum(start - 1, 0))
        last = jnp.take_along_axis(batch.tokens, jnp.maximum(start - 1, 0)[:, None], axis=1)[:, 0]

        def step(carry: Any, key: Array) -> Any:
            cache, token = carry
            out = draft(token[:, None], cache)
            logits = draft.head(out.hidden)
            keys = jax.random.split(key, rows)
            drawn = jax.vmap(gumbel_argmax)(keys, logits[:, 0] / self.temperature)
            return (cache.commit(out.block, jnp.ones_like(token)), drawn), drawn

        _, drawn = jax.lax.scan(step, (cache, last), jax.random.split(draw_key, num))
        offset = place - start[:, None]
        own = (offset >= 0) & (offset < num)
        said = jnp.take_along_axis(drawn.T, jnp.clip(offset, 0, num - 1), axis=1)
        usable = (start > 0)[:, None]  # a row without a place to cut teaches nothing
        return Batch(
            tokens=jnp.where(own & usable, said, batch.tokens),
            supervised=own & usable,
            length=jnp.where(start > 0, start + num, batch.length),
        )

    def matches(self, params: Params, batch: Batch, target: Frozen) -> Array:
        del target
        draft = self.skeleton.module(params, self.compute_dtype)
        logits = draft.head(draft(batch.tokens).hidden)
        width = batch.tokens.shape[1]
        right = logits[:, :-1].argmax(-1) == batch.tokens[:, 1:]
        # Guess i with token t pending is what position t + i says, the text before it being right.
        padded = jnp.pad(right, ((0, 0), (0, self.num_draft + 1)))
        return jnp.stack([padded[:, i : i + width] for i in range(self.num_draft)], axis=-1)
