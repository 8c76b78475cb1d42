"""PARD (An et al. 2025, arXiv:2504.18583): a draft model that guesses K tokens in one pass.

Behind the text x_1..x_n it reads K - 1 mask tokens, and says at x_n and at each mask the token that
follows there: p(x_{n+k} | x_1..x_n, m, .., m). It is a language model in all else. Its
mask is one more row of the embedding (the paper takes an unused token). Accepted guesses are fed in
the next cycle, before the pending token: one pass a cycle.

    python -m experiments.train_drafter --config=configs/train_own.py --workdir=runs/pard \\
        --config.kind=examples/pard.py:Pard --export_dir=runs/pard/export
    python -m experiments.generate --drafter=examples/pard.py:Pard:runs/pard/export
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from specjax.extend import (
    Array,
    BaseObjective,
    Batch,
    Cache,
    Context,
    DecoderConfig,
    Frozen,
    Kept,
    Llama,
    Params,
    Proposal,
    Rope,
    Spec,
    View,
    check_num_draft,
    draw_all,
    labelled,
    losses,
    nnx,
    pytree,
    register_drafter,
    register_objective,
    stack_ahead,
    static,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Pard(Spec):
    net: Frozen  # a Llama of the target's vocabulary and, as the last token, the mask
    num_draft: int | None = None
    kind: str | None = None

    net_class = Llama
    nested = True  # a mask sees none behind it
    summary = "PARD: a language model that guesses at mask tokens, in one pass"

    def bind(self, target: Any, kind: str) -> "PardDrafter":
        k = self.num_draft or 4
        check_num_draft(k)
        ours, theirs = self.net.config.vocab_size - 1, target.config.vocab_size
        if ours != theirs:
            raise ValueError(f"Pard: a draft of {ours} tokens for a target of {theirs}.")
        return PardDrafter(self.net, k, self.kind or kind)

    @classmethod
    def fresh(
        cls,
        target: Any,
        *,
        num_draft: int,
        seed: int = 0,
        hidden: int = 128,
        layers: int = 1,
        heads: int = 4,
    ) -> "Pard":
        config = DecoderConfig(
            model_type="llama",
            vocab_size=target.config.vocab_size + 1,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=hidden // heads,
            rms_norm_eps=1e-6,
            rope=Rope(1e4),
            tie_word_embeddings=False,
            max_position_embeddings=target.config.max_position_embeddings,
        )
        net = Llama(config, dtype=target.dtype, rngs=nnx.Rngs(seed))
        return cls(Frozen.of(net), num_draft)

    @classmethod
    def objective(cls) -> Any:
        return Objective

    def tokens_fed(self, num_draft: int) -> int:
        return 2 * num_draft + 1


@pytree
class State:
    cache: Cache  # committed tokens, but for the late ones and the pending one
    late: Array  # [B, K + 1] int32, committed in the last cycle and not fed yet
    count: Array  # [B] int32, how many


@pytree
class PardDrafter:
    net: Frozen
    num_draft: int = static()
    kind: str = static()
    taps: tuple[int, ...] = static(default=())

    def init(self, rows: int, slots: int) -> State:
        late = jnp.zeros((rows, self.num_draft + 1), jnp.int32)
        return State(self.net.init_cache(rows, slots), late, jnp.zeros(rows, jnp.int32))

    def prefill(self, state: State, tokens: Array, count: Array, features: Any) -> State:
        block = self.net(tokens, state.cache).block
        return dataclasses.replace(state, cache=state.cache.commit(block, count))

    def propose(self, state: State, context: Context) -> tuple[Proposal, State]:
        rows, width = state.late.shape
        masks = jnp.full((rows, self.num_draft - 1), self.net.config.vocab_size - 1, jnp.int32)
        fed = jnp.concatenate([state.late, context.pending, masks], axis=1)
        # Rows have different numbers of late tokens: the empty places behind them are seen by none.
        place = jnp.arange(fed.shape[1], dtype=jnp.int32)[None, :]
        count = state.count[:, None]
        depth = jnp.where(place < width, place, place - width + count)
        u, t = place[:, None, :], place[:, :, None]
        visible = (u <= t) & ((u >= width) | (u < count[:, None]) | (u == t))
        out = self.net(fed, state.cache, view=View(depth, visible))
        logits = self.net.head(out.hidden[:, width:])[..., :-1]  # the mask is no guess
        guesses, q = draw_all(logits, self.kind, context)
        cache = state.cache.commit(out.block, state.count, after=guesses[:, 0])
        return Proposal(guesses, q), State(cache, state.late, jnp.zeros_like(state.count))

    def update(self, held: State, kept: Kept) -> State:
        return State(held.cache, kept.tokens, kept.count)

    def cut(self, state: State, length: Array) -> State:
        # What is late was never fed: the next turn feeds it, from where the cache ends.
        none = jnp.zeros_like(state.count)
        return dataclasses.replace(state, cache=state.cache.cut(length), count=none)

    def grow(self, state: State, slots: int) -> State:
        return dataclasses.replace(state, cache=state.cache.grow(slots))


@dataclasses.dataclass(frozen=True, eq=False)
class Objective(BaseObjective):
    """Cross entropy of all K guesses at every token, with conditional drop-token (COD).

    Masks that stand k behind a token are trained at a share max(r^k, r_min) of the tokens, each
    a subset of those of k - 1, since a mask sees the masks before it.
    """

    keep: float = 0.7  # r
    least: float = 0.2  # r_min

    def logits(self, params: Params, tokens: Array, after: Array, step: Array) -> Array:
        """[B, U, V]: of the text (the first T, step 0) and of masks ``step`` behind ``after``."""
        net = self.net(params)
        rows, size = tokens.shape
        masks = jnp.full((rows, len(after) - size), net.config.vocab_size - 1, tokens.dtype)
        text = (step[None, :] == 0) & (after[None, :] <= after[:, None])
        block = (after[None, :] == after[:, None]) & (step[None, :] <= step[:, None])
        view = View((after + step)[None], (text | block)[None])
        fed = jnp.concatenate([tokens, masks], axis=1)
        return net.head(net(fed, view=view).hidden)[..., :-1]

    def places(self, order: Array, keep: float) -> tuple[Array, Array]:
        """Of each token of the pass which token of the text it is behind, and how far."""
        size = len(order)
        after, step = [jnp.arange(size, dtype=jnp.int32)], [0] * size
        for k in range(1, self.num_draft):
            num = math.ceil(size * max(keep**k, self.least))
            after.append(order[:num])
            step += [k] * num
        return jnp.concatenate(after), jnp.array(step, jnp.int32)

    def __call__(self, params: Params, batch: Batch, target: Frozen, key: Array) -> Any:
        del target  # the text is the label, written by the target where it pays
        order = jax.random.permutation(key, jnp.arange(batch.tokens.shape[1], dtype=jnp.int32))
        after, step = self.places(order, self.keep)
        counted = labelled(batch, self.num_draft)[:, after, step]
        labels = stack_ahead(batch.tokens, self.num_draft)[:, after, step]
        entropy = losses.cross_entropy(self.logits(params, batch.tokens, after, step), labels)
        return jnp.where(counted, entropy, 0.0).sum(), counted.sum().astype(jnp.float32), {}

    def matches(self, params: Params, batch: Batch, target: Frozen) -> Array:
        rows, size = batch.tokens.shape
        after, step = self.places(jnp.arange(size, dtype=jnp.int32), 1.0)
        guesses = self.logits(params, batch.tokens, after, step).argmax(-1)
        guesses = guesses.reshape(rows, self.num_draft, size).swapaxes(1, 2)
        return guesses == stack_ahead(batch.tokens, self.num_draft)


register_drafter("pard", Pard)
register_objective("pard", Objective)
