"""PARD (An et al. 2025, arXiv:2504.18583): a small language model that guesses in one pass.

    python -m experiments.train_drafter --config=CONFIG --workdir=runs/pard --export_dir=runs/pard/x
    python -m experiments.generate --drafter=examples/pard.py:Pard:runs/pard/x

CONFIG is a copy of configs/train_medusa.py with kind="examples/pard.py:Pard", sizes={"layers": 1},
objective={} and export_format="".

Masks stand for the guesses: with the text up to token t and masks behind it, mask j answers for
token t + 1 + j, and the last token itself for t + 1. What the last verdict kept was never fed as
text, so it is fed first:

    cache       a b            of the committed a b c d, d pending
    feed        c d . m m      guesses from d and from each m; c and d are committed afterwards
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.extend import (
    Array,
    BaseObjective,
    Context,
    Frozen,
    Llama,
    Proposal,
    Spec,
    View,
    check_kind,
    check_num_draft,
    dense_like,
    draw_all,
    labelled,
    losses,
    pytree,
    stack_ahead,
    static,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Pard(Spec):
    net: Frozen  # of a Llama with the target's vocabulary
    num_draft: int = 4
    kind: str | None = None
    mask_id: int = 0  # a token that text does not hold

    net_class = Llama
    nested = True  # a mask sees none behind it

    def bind(self, target, kind):
        check_num_draft(self.num_draft)
        check_kind(self.kind)
        ours, theirs = self.net.config.vocab_size, target.config.vocab_size
        if ours != theirs:
            raise ValueError(f"pard speaks {ours} tokens and {target.name} {theirs}.")
        return PardDrafter(self.net, self.num_draft, self.kind or kind, self.mask_id)

    @classmethod
    def fresh(cls, target, *, num_draft, seed=0, layers=1, mask_id=None, **sizes):
        config = dense_like(target.config, "llama", layers=layers, **sizes)
        net = Frozen.of(Llama(config, dtype=target.dtype, rngs=nnx.Rngs(seed)))
        mask_id = target.config.vocab_size - 1 if mask_id is None else mask_id
        return cls(net, num_draft, None, mask_id)

    @classmethod
    def objective(cls):
        return PardObjective

    def tokens_fed(self, num_draft):
        return 2 * num_draft


@pytree
class PardDrafter:
    """Its state is the draft's cache, which misses what the last verdict kept."""

    net: Frozen
    num_draft: int = static()
    kind: str = static()
    mask_id: int = static()

    taps = ()

    def init(self, rows, slots):
        return self.net.init_cache(rows, slots)

    def prefill(self, cache, tokens, count, features):
        return cache.commit(self.net(tokens, cache).block, count)

    def propose(self, cache, context: Context):
        K, rows = self.num_draft, context.length.shape[0]
        missing = (context.length - cache.length)[:, None]  # [B, 1], from 1 to K + 1
        place = jnp.arange(K + 1)[None]
        at = jnp.minimum(cache.length[:, None] + place, context.tokens.shape[1] - 1)
        text = jnp.take_along_axis(context.tokens, at, axis=1)
        masks = jnp.full((rows, K - 1), self.mask_id, jnp.int32)
        # Of K + 1 places of text the first ``missing`` are text; the masks stand behind those.
        behind = missing + jnp.arange(K - 1)[None]
        depth = jnp.concatenate([jnp.broadcast_to(place, (rows, K + 1)), behind], axis=1)
        real = jnp.pad(place < missing, ((0, 0), (0, K - 1)), constant_values=True)  # [B, 2K]
        visible = real[:, None, :] & (depth[:, None, :] <= depth[:, :, None])
        out = self.net(jnp.concatenate([text, masks], axis=1), cache, view=View(depth, visible))
        last = jnp.take_along_axis(out.hidden, (missing - 1)[:, :, None], axis=1)
        h = jnp.concatenate([last, out.hidden[:, K + 1 :]], axis=1)
        guesses, q = draw_all(self.net.head(h), self.kind, context)
        block = jax.tree.map(lambda x: x[..., : K + 1, :], out.block)
        return Proposal(guesses, q), (cache, block, missing[:, 0])

    def update(self, held, kept):
        cache, block, count = held
        count = jnp.where(kept.count > 0, count, 0)
        return cache.commit(block, count, after=kept.tokens[:, -1])

    def grow(self, cache, slots):
        return cache.grow(slots)


@dataclasses.dataclass(frozen=True, eq=False)
class PardObjective(BaseObjective):
    """Cross entropy of every guess at every place, all masks in one pass (none are dropped)."""

    decay: float = 0.9  # of the weight of a guess
    mask_id: int = -1  # -1: the last token, as `Pard.fresh` has it

    def logits(self, params, batch) -> Array:
        """[B, T, K, V]: of guess i with token t pending."""
        K, (rows, T) = self.num_draft, batch.tokens.shape
        mask = self.config.vocab_size - 1 if self.mask_id < 0 else self.mask_id
        masks = jnp.full((rows, (K - 1) * T), mask, jnp.int32)
        tokens = jnp.concatenate([batch.tokens, masks], axis=1)  # the text, then masks j of all t
        j, t = (x.reshape(-1) for x in jnp.mgrid[:K, :T])  # j = 0: the text
        own = (t[None, :] == t[:, None]) & (j[None, :] <= j[:, None])
        visible = own | ((j[None, :] == 0) & (t[None, :] <= t[:, None]))
        net = self.net(params)
        out = net(tokens, view=View((t + j)[None], visible[None]))
        return net.head(out.hidden).reshape(rows, K, T, -1).swapaxes(1, 2)

    def __call__(self, params, batch, target, key):
        logits, K = self.logits(params, batch), self.num_draft
        counted = labelled(batch, K)
        entropy = losses.cross_entropy(logits, stack_ahead(batch.tokens, K))
        scale = self.decay ** jnp.arange(K, dtype=jnp.float32)
        loss = jnp.where(counted, entropy, 0.0) * scale[None, None]
        return loss.sum(), counted[..., 0].sum().astype(jnp.float32), {}

    def matches(self, params, batch, target):
        return self.logits(params, batch).argmax(-1) == stack_ahead(batch.tokens, self.num_draft)
