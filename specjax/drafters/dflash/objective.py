"""Training DFlash, DFlash2 and DSpark: random anchors, one masked block behind each.

A text gives its context once; its blocks, [anchor, mask, mask, ...] at N random positions, are run
over it at once where what the backward pass needs of them has room, else in chunks that are run
again (`remat`). Logits over the vocabulary exist for some blocks at a time (`train.chunks`). The
network's functions are those of inference; only `Blocks` has many blocks instead of one.

The loss of guess k is weighted by ``exp(-(k - 1) / gamma)`` (DFlash, arXiv:2602.06036) or, with
``gamma=0``, by D-PACE (arXiv:2605.18810). It mixes cross entropy with the text, a divergence from
the target's law given the text, and for DSpark (arXiv:2607.05147) the L1 distance of the laws and
the calibration of the confidence head. DFlash2's selector has a cross entropy of its own over the
candidates, the text's token being the predecessor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from specjax.core.cache import Block
from specjax.core.dear import keeping_dear
from specjax.core.sharding import constrain, pieces
from specjax.core.types import Array
from specjax.drafters.dflash.drafter import embed, head
from specjax.drafters.dflash.net import Blocks, DFlashConfig, DFlashNet
from specjax.models.frozen import Frozen
from specjax.models.vocabulary import Vocabulary
from specjax.train import losses
from specjax.train.chunks import cut, over_chunks, positions_at_once, shares
from specjax.train.objectives.base import Batch, ahead, valid
from specjax.train.room import check_remat, kept_bytes, room
from specjax.train.state import Params, Skeleton

Sums = dict[str, Array]


@dataclasses.dataclass(frozen=True, eq=False)
class DFlashObjective:
    """See the module. Weights of the terms of the loss are relative; 0 leaves a term out."""

    unpacked: ClassVar[str] = ""

    skeleton: Skeleton
    config: DFlashConfig
    compute_dtype: Any = jnp.bfloat16
    target_ids: Array | None = None  # [V_draft], where the draft's head is reduced
    anchors: int = 64  # N, blocks a row
    chunk: int = 0  # blocks a row whose logits exist at once; 0: as many as have room
    # "none" of the blocks' layers are run again in the backward pass, all "blocks" are, in chunks,
    # or "auto": those that there is no room for (`train.room`).
    remat: str = "auto"
    gamma: float = 0.0  # decay of the weights over a block; 0: D-PACE
    dpace_alpha: float = 0.5
    ce: float = 1.0
    divergence: float = 0.0
    divergence_kind: str = "forward_kl"  # a key of `losses.DIVERGENCES`
    l1: float = 0.0
    confidence: float = 1.0  # only where there is such a head
    selector: float = 1.0  # only where there is one

    def __post_init__(self) -> None:
        if self.anchors < 1 or self.chunk < 0:
            raise ValueError(
                f"anchors={self.anchors} must be positive, chunk={self.chunk} not negative."
            )
        check_remat(self.remat, "blocks")
        if self.gamma < 0 or not 0 <= self.dpace_alpha <= 1:
            raise ValueError("gamma must not be negative, dpace_alpha must lie in [0, 1].")
        if min(self.ce, self.divergence, self.l1) < 0 or self.ce + self.divergence + self.l1 == 0:
            raise ValueError("ce, divergence and l1 must not be negative, nor all of them zero.")
        if self.divergence_kind not in losses.DIVERGENCES:
            known = ", ".join(losses.DIVERGENCES)
            raise ValueError(f"divergence_kind={self.divergence_kind!r} is unknown ({known}).")

    @property
    def num_draft(self) -> int:
        return self.config.max_guesses

    @property
    def needs_teacher(self) -> bool:
        """Whether the target's own law is asked for, not only the text."""
        return bool(self.divergence or self.l1 or self.config.confidence_head)

    def __call__(
        self, params: Params, batch: Batch, target: Frozen, key: Array
    ) -> tuple[Array, Array, Sums]:
        """See `Objective`. Anchors are drawn anew from ``key``, without replacement."""
        return self.at_anchors(params, batch, target, *draw_anchors(batch, self.anchors, key))

    def at_anchors(
        self, params: Params, batch: Batch, target: Frozen, anchors: Array, keep: Array
    ) -> tuple[Array, Array, Sums]:
        """The loss of the blocks at ``anchors`` [B, N], of those that ``keep`` [B, N] marks."""
        params = {name: p.astype(self.compute_dtype) for name, p in params.items()}
        context, final = self._context(params, batch, target)
        h = self._states_of_all(params, target.vocabulary, batch, context, anchors)
        teacher = self._teacher(target, final, anchors.size) if self.needs_teacher else None

        def loss(params: Params, h: Array, given: tuple[Array, Array]) -> tuple[Array, Any, Any]:
            anchors, keep = given
            labels, valid = self._labels(batch, anchors)
            wanted = None if teacher is None else teacher(anchors)
            net = self.skeleton.module(params)
            valid = valid & keep[..., None]
            found = self._loss(net, target.vocabulary, batch, h, anchors, labels, valid, wanted)
            return found[0], found[1:], ()

        size = self.chunk or self._blocks_at_once(target, *anchors.shape)
        total, (weight, sums), _ = over_chunks(
            loss, params, cut(h, size), (cut(anchors, size), cut(keep, size))
        )
        return total, weight, sums

    def matches(self, params: Params, batch: Batch, target: Frozen) -> Array:
        """See `Objective`: a block at every position of the text."""
        params = {name: p.astype(self.compute_dtype) for name, p in params.items()}
        context, _ = self._context(params, batch, target)
        rows, size = batch.tokens.shape
        anchors = jnp.broadcast_to(jnp.arange(size)[None, :], (rows, size))
        net, vocabulary = self.skeleton.module(params), target.vocabulary

        def same(anchors: Array) -> Array:
            h = self._states(net, vocabulary, batch, context, anchors)
            previous = self._previous(batch, anchors)
            logits = self._logits(net, vocabulary, h, previous)
            return self._greedy(net, h, previous, logits) == self._labels(batch, anchors)[0]

        most = self.chunk or self._blocks_at_once(target, rows, size)
        found: Array = jax.lax.map(same, cut(anchors, most))  # [chunks, B, C, K]
        return found.swapaxes(0, 1).reshape(rows, -1, self.num_draft)[:, :size]

    def tokens_through(self, weight: str, rows: int, length: int) -> int:
        """Tokens of ``rows`` texts that a step multiplies a weight with, of the network or the
        target's head: those of the context, of the blocks, or both."""
        context, blocks = rows * length, rows * self.anchors * self.config.block_size
        if weight.startswith("fc."):
            return context
        return blocks + context * (".k_proj." in weight or ".v_proj." in weight)

    def head_work(self, rows: int, length: int) -> int:
        """Operations a weight of the target's head in a step: forward, and back by states."""
        return 4 * self.tokens_through("lm_head.weight", rows, length)

    # What both share.

    def _context(self, params: Params, batch: Batch, target: Frozen) -> tuple[Block, Array]:
        """The context of each text, and the target's final states [B, T, D]."""
        tokens = constrain(batch.tokens, "batch", None)
        out = target(tokens, taps=self.config.taps, view=batch.view)
        assert out.features is not None
        net = self.skeleton.module(params)
        positions = jnp.broadcast_to(batch.positions, tokens.shape)
        context = net.context(jax.lax.stop_gradient(out.features), positions)
        return context, jax.lax.stop_gradient(out.hidden)

    def _blocks_at_once(self, target: Frozen, rows: int, num: int) -> int:
        """How many of ``num`` blocks a row have logits at the same time, in equal shares."""
        vocab = self.config.draft_vocab_size or target.config.vocab_size
        return shares(num, positions_at_once(rows, vocab) // self.num_draft)

    def _states_of_all(
        self, params: Params, vocabulary: Vocabulary, batch: Batch, context: Block, anchors: Array
    ) -> Array:
        """`_states` [B, N, K, D]; what has no room until the backward pass is computed again."""

        @keeping_dear
        def of(params: Params, context: Block, anchors: Array) -> Array:
            net = self.skeleton.module(params)
            return self._states(net, vocabulary, batch, context, anchors)

        (rows, num), fits = anchors.shape, 1
        if self.remat != "none" and num > 1:
            few = lambda num: kept_bytes(
                lambda params, context: of(params, context, anchors[:, :num]), params, context
            )
            fits = room() // max((few(2) - few(1)) // pieces("batch"), 1)
        if self.remat == "none" or (self.remat == "auto" and fits >= num):
            states: Array = of(params, context, anchors)
            return states
        again = jax.checkpoint(of)
        found: Array = jax.lax.map(
            lambda x: again(params, context, x), cut(anchors, self.chunk or shares(num, fits))
        )
        return found.swapaxes(0, 1).reshape(rows, -1, *found.shape[3:])[:, :num]

    def _states(
        self, net: DFlashNet, vocabulary: Vocabulary, batch: Batch, context: Any, anchors: Array
    ) -> Array:
        """The states [B, C, K, D] that guesses are made from, of blocks at ``anchors`` [B, C]."""
        rows, num = anchors.shape
        size = self.config.block_size
        tokens = jnp.full((rows, num, size), self.config.mask_token_id, jnp.int32)
        tokens = tokens.at[:, :, 0].set(jnp.take_along_axis(batch.tokens, anchors, axis=1))
        x = embed(net, self.config, vocabulary, tokens.reshape(rows, num * size))
        blocks = Blocks.at(anchors, size, _begins(batch, anchors))
        look = blocks.looking_at(context, self.config, net.platform)
        h = net.block(x, blocks.positions, blocks.offsets, look)
        return h.reshape(rows, num, size, -1)[:, :, size - self.num_draft :]

    def _labels(self, batch: Batch, anchors: Array) -> tuple[Array, Array]:
        """The tokens [B, C, K] behind each anchor, and which of them count."""
        rows, num = anchors.shape
        place = anchors[:, :, None] + 1 + jnp.arange(self.num_draft)[None, None, :]
        inside = place < batch.length[:, None, None]
        flat = jnp.minimum(place, batch.tokens.shape[1] - 1).reshape(rows, -1)
        take = lambda x: jnp.take_along_axis(x, flat, axis=1).reshape(rows, num, -1)
        begins = _begins(batch, anchors)
        if begins is not None:
            inside = inside & (take(batch.begin) == begins[..., None])
        return take(batch.tokens), inside & take(batch.supervised)

    def _teacher(self, target: Frozen, final: Array, blocks: int) -> Callable[[Array], Array]:
        """Anchors [B, C] -> the target's logits [B, C, K, V] for the tokens behind, given the text.

        They are computed once a token of the text where ``blocks`` of all rows have more tokens
        and a few chunks' logits are as large.
        """
        rows, size = final.shape[:2]
        once = size * rows <= blocks * self.num_draft
        once = once and size <= 8 * positions_at_once(rows, target.config.vocab_size)
        logits = jax.lax.stop_gradient(target.head(final)) if once else None

        def of(anchors: Array) -> Array:
            place = anchors[:, :, None] + jnp.arange(self.num_draft)[None, None, :]
            flat = jnp.minimum(place, size - 1).reshape(rows, -1, 1)
            if logits is not None:
                found = jnp.take_along_axis(logits, flat, axis=1)
            else:
                states = jnp.take_along_axis(final, flat, axis=1)
                found = jax.lax.stop_gradient(target.head(states))
            return found.reshape(rows, -1, self.num_draft, found.shape[-1])

        return of

    def _previous(self, batch: Batch, anchors: Array) -> Array:
        """The text's token before each guess [B, C, K]."""
        rows, num = anchors.shape
        place = anchors[:, :, None] + jnp.arange(self.num_draft)[None, None, :]
        flat = jnp.minimum(place, batch.tokens.shape[1] - 1).reshape(rows, -1)
        return jnp.take_along_axis(batch.tokens, flat, axis=1).reshape(rows, num, -1)

    def _logits(self, net: DFlashNet, vocabulary: Vocabulary, h: Array, previous: Array) -> Array:
        """[B, C, K, V_draft] float32, the Markov head included."""
        logits = head(net, self.config, vocabulary, h)
        return logits + net.markov_head(previous) if self.config.markov_rank else logits

    def _greedy(self, net: DFlashNet, h: Array, previous: Array, logits: Array) -> Array:
        """The guesses [B, C, K] at temperature 0, those before being the text's own."""
        if self.config.selector_rank:
            selector = net.candidate_selector
            unary, candidates = jax.lax.top_k(logits, self.config.selector_top_k)
            best = selector.score(unary, previous, selector.gate(h), candidates).argmax(-1)
            return jnp.take_along_axis(candidates, best[..., None], axis=-1)[..., 0]
        guess = logits.argmax(-1).astype(jnp.int32)
        return guess if self.target_ids is None else self.target_ids[guess]

    def _loss(
        self,
        net: DFlashNet,
        vocabulary: Vocabulary,
        batch: Batch,
        h: Array,
        anchors: Array,
        labels: Array,
        valid: Array,
        teacher: Array | None,
    ) -> tuple[Array, Array, Sums]:
        previous = self._previous(batch, anchors)
        logits = self._logits(net, vocabulary, h, previous)
        own, known = self._own_ids(labels)
        log_q = jnp.where(known, losses.label_log_probs(logits, own), -jnp.inf)
        if self.gamma:
            weights = losses.decay_weights(self.num_draft, self.gamma)[None, None]
        else:
            weights = losses.dpace_weights(log_q, self.dpace_alpha, valid)
        weights = jax.lax.stop_gradient(jnp.where(valid & known, weights, 0.0))
        loss = jnp.zeros_like(weights)
        if self.ce:
            loss = loss - self.ce * jnp.where(known, log_q, 0.0)
        if teacher is not None:
            if self.divergence:
                kind = losses.DIVERGENCES[self.divergence_kind]
                loss = loss + self.divergence * kind(teacher, logits, self.target_ids)
            p = jnp.exp(losses.restrict(teacher, self.target_ids))
            distance = jnp.abs(p - jax.nn.softmax(logits)).sum(-1) + 1 - p.sum(-1)
            loss = loss + self.l1 * distance
            if self.config.confidence_head and self.confidence:
                chance = jax.lax.stop_gradient(1 - 0.5 * distance)
                loss = loss + self.confidence * self._calibration(net, h, previous, chance)
        if self.config.selector_rank and self.selector:
            loss = loss + self.selector * self._selection(net, h, previous, logits, labels)
        right = self._greedy(net, h, previous, logits) == labels
        sums = {"accuracy": jnp.where(right, weights, 0.0).sum()}
        return (weights * loss).sum(), weights.sum(), sums

    def _own_ids(self, labels: Array) -> tuple[Array, Array]:
        """Labels in the draft's vocabulary, and whether it has them."""
        if self.target_ids is None:
            return labels, jnp.ones_like(labels, jnp.bool_)
        vocab = self.config.backbone.vocab_size
        places = jnp.arange(self.target_ids.shape[0])
        table = jnp.full((vocab,), -1, jnp.int32).at[self.target_ids].set(places)
        own = table[labels]
        return jnp.maximum(own, 0), own >= 0

    def _selection(
        self, net: DFlashNet, h: Array, previous: Array, logits: Array, labels: Array
    ) -> Array:
        """Cross entropy of the selector; 0 where the label is no candidate."""
        selector = net.candidate_selector
        unary, candidates = jax.lax.top_k(logits, self.config.selector_top_k)
        scores = selector.score(unary, previous, selector.gate(h), candidates)
        hit = candidates == labels[..., None]
        log_q = jnp.where(hit, jax.nn.log_softmax(scores), 0.0).sum(-1)
        return jnp.where(hit.any(-1), -log_q, 0.0)

    def _calibration(self, net: DFlashNet, h: Array, previous: Array, chance: Array) -> Array:
        """Binary cross entropy of the confidence head with the true ``chance`` [B, C, K]."""
        if self.config.confidence_with_markov and self.config.markov_rank:
            h = jnp.concatenate([h, net.markov_head.embed(previous).astype(h.dtype)], axis=-1)
        logit = net.confidence_head(h)
        return jax.nn.softplus(logit) - chance * logit


def _begins(batch: Batch, anchors: Array) -> Array | None:
    """Where the texts of ``anchors`` [B, C] begin; None: a row is one text."""
    return None if batch.begin is None else jnp.take_along_axis(batch.begin, anchors, axis=1)


def draw_anchors(batch: Batch, num: int, key: Array) -> tuple[Array, Array]:
    """Random anchors whose next token is a label, without replacement, sorted.

    Where a row has several texts, all of its labels are as likely.

    Returns:
      [B, N] int32, and which of them there are: a short text has fewer than N.
    """
    size = batch.tokens.shape[1]
    follows = ahead(valid(batch), 1, batch.begin)
    noise = jax.random.uniform(key, batch.tokens.shape)
    score, anchors = jax.lax.top_k(jnp.where(follows, noise, -1.0), min(num, size))
    anchors = jnp.where(score >= 0, anchors, size - 1)
    order = anchors.argsort(axis=1)
    return tuple(jnp.take_along_axis(x, order, axis=1) for x in (anchors, score >= 0))  # type: ignore[return-value]


OBJECTIVE = DFlashObjective
