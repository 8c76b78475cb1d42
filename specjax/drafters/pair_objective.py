"""Training a drafter of pairs: every position of a text drafts at once, K steps far.

Column t is the draft with token t pending: step 0 reads the pairs up to (f_{t-1}, x_t), and each
further step what the one before fed back, paired with the text's own next token (the guess, had it
been right):

    step j, column t    reads (s^j_t, x_{t+j}) at position t - 1 + j, guesses x_{t+1+j}
    s^0_t = g_{t-1},    s^{j+1}_t = what step j fed back
    sees                the pairs of step 0 in the columns up to t, and steps 1..j of its own column

The loss of step j is a divergence from the target's law behind token t + j, on the draft's
vocabulary, where the target's likeliest token is in it; it is weighted with ``decay ** j``.
Logits of teacher and student over the vocabulary exist for one chunk of positions at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from specjax.core.cache import Block, Cache
from specjax.core.cache.block import join
from specjax.core.dear import keeping_dear
from specjax.core.sharding import constrain, pieces
from specjax.core.types import Array
from specjax.core.view import Ranges, View, mask
from specjax.drafters.columns import Columns
from specjax.models.frozen import Frozen
from specjax.train import losses
from specjax.train.chunks import over_chunks, positions_at_once, shares
from specjax.train.objectives.base import Batch, ahead, shifted, stack_ahead, valid
from specjax.train.room import check_remat, kept_bytes, room
from specjax.train.state import Params, Skeleton

Sums = dict[str, Array]


@dataclasses.dataclass(frozen=True, eq=False)
class PairObjective:
    """See the module. A draft's own embedding is not trained.

    The sum of all steps is divided by the number of positions that count at step 0.
    """

    unpacked: ClassVar[str] = ""

    skeleton: Skeleton
    config: Any  # of its network, with ``taps`` and a ``backbone``
    compute_dtype: Any = jnp.bfloat16
    target_ids: Array | None = None  # [V_draft], where the vocabulary is reduced
    num_draft: int = 7  # J, steps
    decay: float = 0.8
    divergence: str = "forward_kl"  # a key of `losses.DIVERGENCES`
    chunk: int = 0  # positions of a row whose logits exist at once; 0: as many as have room
    # Products of "none" of the steps are computed again in the backward pass, those of all "steps"
    # are, or "auto": if there is no room for them (`train.room`).
    remat: str = "auto"

    def __post_init__(self) -> None:
        if self.num_draft < 1 or self.chunk < 0:
            raise ValueError(
                f"num_draft={self.num_draft} must be positive, chunk={self.chunk} not negative."
            )
        check_remat(self.remat, "steps")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay={self.decay} is not in (0, 1].")
        if self.divergence not in losses.DIVERGENCES:
            known = ", ".join(losses.DIVERGENCES)
            raise ValueError(f"divergence={self.divergence!r} is unknown ({known}).")

    def __call__(
        self, params: Params, batch: Batch, target: Frozen, key: Array
    ) -> tuple[Array, Array, Sums]:
        """See `Objective`. Nothing is random."""
        del key
        params = {name: p.astype(self.compute_dtype) for name, p in params.items()}
        net = self.skeleton.module(params)
        final, fused = self._features(net, batch, target)
        states = self.unroll(net, batch, fused, target)
        steps, width = self.num_draft, batch.tokens.shape[1]
        # Column 0 of a text has no feature: it drafts only from prompts of one token.
        labels, drafts = valid(batch), batch.positions > 0
        counted = jnp.stack([ahead(labels, 1 + j, batch.begin) & drafts for j in range(steps)])
        size = self._positions_at_once(batch, target)
        given = (cut(counted, size), jnp.arange(-(-width // size)))
        padded = jnp.pad(final, ((0, 0), (0, size + steps), (0, 0)))
        kind, allowed = losses.DIVERGENCES[self.divergence], self._allowed()

        def one_chunk(params: Params, h: Array, given: tuple[Array, Array]) -> Any:
            """Of all steps [J, B, C, D], which the target's logits [B, C + J - 1, V] serve."""
            counted, index = given
            rows = jax.lax.dynamic_slice_in_dim(padded, index * size, size + steps - 1, axis=1)
            teacher = jax.lax.stop_gradient(target.head(rows))

            def one_step(params: Params, h: Array, given: tuple[Array, Array]) -> Any:
                counted, j = given
                logits = self.head(self.skeleton.module(params), target, h)
                here = jax.lax.dynamic_slice_in_dim(teacher, j, size, axis=1)
                best = here.argmax(-1)
                counted = counted if allowed is None else counted & allowed[best]
                loss = jnp.where(counted, kind(here, logits, self.target_ids), 0.0).sum()
                return (
                    jnp.float32(self.decay) ** j.astype(jnp.float32) * loss,
                    (),
                    (counted, self._named(logits) == best),
                )

            of_steps = over_chunks(one_step, params, h, (counted, jnp.arange(steps)))
            total, _, (counted, agree) = of_steps
            right = (counted & agree).astype(jnp.float32)
            sums = {"accuracy": right[0].sum(), "accepted": jnp.cumprod(right, axis=0).sum()}
            return total, (counted[0].astype(jnp.float32).sum(), sums), ()

        total, (weight, sums), _ = over_chunks(one_chunk, params, cut(states, size), given)
        return total, weight, sums

    def matches(self, params: Params, batch: Batch, target: Frozen) -> Array:
        """See `Objective`."""
        net = self.skeleton.module(params, self.compute_dtype)
        _, fused = self._features(net, batch, target)
        width, size = batch.tokens.shape[1], self._positions_at_once(batch, target)
        chunks = cut(self.unroll(net, batch, fused, target), size)
        named = jax.lax.map(
            lambda h: self._named(self.head(net, target, h)), chunks
        )  # [n, J, B, C]
        guesses = named.transpose(2, 0, 3, 1).reshape(len(batch.tokens), -1, self.num_draft)
        found: Array = guesses[:, :width] == stack_ahead(batch.tokens, self.num_draft, batch.begin)
        return found

    # --- what a subclass writes ------------------------------------------------------------

    def fuse(self, net: Any, features: Array) -> Array:
        """Tapped states [B, T, F] -> features of pairs [B, T, D]."""
        raise NotImplementedError

    def head(self, net: Any, target: Frozen, normed: Array) -> Array:
        """States [.., D] -> logits over the draft's vocabulary, float32."""
        raise NotImplementedError

    def read(
        self,
        net: Any,
        target: Frozen,
        step: int,
        x: Array,
        tokens: Array,
        *seen: Any,  # cache, view, block before
    ) -> tuple[Array, Array, Block]:
        """One pass of step ``step`` over pairs: as `PairDrafting.read`."""
        raise NotImplementedError

    def heads(self, net: Any) -> int:
        """How many networks guess a step each, the last one all further steps."""
        del net
        return 1

    def seen(
        self, net: Any, batch: Batch, past: tuple[Block, ...]
    ) -> tuple[Cache, View, Block | None]:
        """What a step sees of ``past``, the steps of the same network before it.

        Each query sees those of the first step up to its own, and of the later ones its column.
        Where not all layers know what `Columns` are, they are one growing block under a mask.
        """
        (rows, width), size = batch.tokens.shape, len(past)
        cache = net.init_cache(rows, 0).placed(net.platform, net.replicated)
        ranges = seen_of_first(batch, later=size > 0)
        seen = mask(ranges, width)
        entries: list[Any] = []
        for i, entry in enumerate(cache.layers):  # a head of several has one layer
            parts = tuple(block[i if len(block) > 1 else 0] for block in past)
            entries.append(Columns.instead_of(entry, parts, ranges))
        if None not in entries:
            view = View(batch.positions - 1 + size, seen)
            return Cache(tuple(entries), cache.length), view, None
        column = jnp.broadcast_to(jnp.eye(width, dtype=bool)[None], seen.shape)
        visible = jnp.concatenate([seen, *[column] * size], axis=-1)
        depth = jnp.concatenate([batch.positions - 1 + i for i in range(size + 1)], axis=1)
        before = functools.reduce(join, past) if past else None
        return cache, View(depth, visible), before

    # ---------------------------------------------------------------------------------------

    def unroll(self, net: Any, batch: Batch, fused: Array, target: Frozen) -> Array:
        """The normed states of every step and column, [J, B, T, D].

        Args:
          fused: [B, T, D], the feature of every token.
        """
        tokens = constrain(batch.tokens, "batch", None)
        x = shifted(fused, batch.begin)

        def step(j: int) -> Any:
            return functools.partial(self.read, net, target, j)

        first = lambda x: keeping_dear(step(0))(x, tokens, *self.seen(net, batch, ()))
        again: Callable[..., Any] = keeping_dear
        if self.remat != "none":
            kept = 0 if self.remat == "steps" else kept_bytes(first, x) // pieces("batch")
            fits = self.remat == "auto" and self.num_draft * kept <= room()
            again = keeping_dear if fits else jax.checkpoint
        states: list[Array] = []
        past: tuple[Block, ...] = ()
        for j in range(self.num_draft):
            read = again(step(j))
            fed = ahead(tokens, j, batch.begin)
            x, normed, new = read(x, fed, *self.seen(net, batch, past))
            past = (*past, new) if j + 1 >= self.heads(net) else ()
            states.append(normed)
        return jnp.stack(states)

    def _features(self, net: Any, batch: Batch, target: Frozen) -> tuple[Array, Array]:
        """The target's final states and the fused features, [B, T, D_target] and [B, T, D]."""
        tokens = constrain(batch.tokens, "batch", None)
        out = target(tokens, taps=self.config.taps, view=batch.view)
        assert out.features is not None
        return jax.lax.stop_gradient(out.hidden), self.fuse(
            net, jax.lax.stop_gradient(out.features)
        )

    def _positions_at_once(self, batch: Batch, target: Frozen) -> int:
        """Of a row, with logits."""
        rows, width = batch.tokens.shape
        most = self.chunk or positions_at_once(rows, target.config.vocab_size)
        return min(most, width) if self.chunk else shares(width, most)

    def _named(self, logits: Array) -> Array:
        """The target's id of the likeliest draft token."""
        guess = logits.argmax(-1).astype(jnp.int32)
        return guess if self.target_ids is None else self.target_ids[guess]

    def _allowed(self) -> Array | None:
        """[V] bool: which tokens the draft can guess; None: all."""
        if self.target_ids is None:
            return None
        return (
            jnp.zeros((self.config.backbone.vocab_size,), jnp.bool_).at[self.target_ids].set(True)
        )


def seen_of_first(batch: Batch, *, later: bool) -> Ranges:
    """What columns see of the first step, in it or in later ones: their text up to themselves.

    The zeros that stand in for a feature in column 0 of a text are seen by themselves alone.
    """
    text, standin = batch.ranges, batch.positions == 0
    itself = jnp.where(standin, text.begin, text.begin + 1)
    return Ranges(text.begin + 1 if later else itself, text.end)


def cut(x: Array, size: int) -> Array:
    """[J, B, T, ...] -> [n, J, B, size, ...], padded."""
    steps, rows, width, *rest = x.shape
    x = jnp.pad(x, [(0, 0), (0, 0), (0, -width % size)] + [(0, 0)] * len(rest))
    return jnp.moveaxis(x.reshape(steps, rows, -1, size, *rest), 2, 0)
