"""DFlash (Chen et al. 2026, arXiv:2602.06036): a whole block guessed in one parallel pass.

The block is the pending token, called the anchor, and masks behind it. It sees the committed text
before the anchor through tapped states of the target, which every layer turns into keys and values
once a token and keeps; those of the block are dropped. Guesses are the likeliest token of each
slot, at any temperature: drawn slot by slot they would not agree with one another, and a
deterministic guess is accepted more often.

    committed   a b c d      length 4, d pending: its states are not known before the next pass
    context     a b c        cache length 3
    block       d M M M      slots 1.. guess the tokens at positions 4, 5, 6
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from specjax.core.cache import Cache
from specjax.core.types import Array, Kept, Proposal, one_line, pytree, static
from specjax.drafters.base import Context, check_fits, check_num_draft
from specjax.drafters.dflash.kind import DFlashKind
from specjax.drafters.dflash.net import DFlashConfig, DFlashNet, block_views
from specjax.drafters.drawing import best_of, draw_all, onto_target
from specjax.drafters.spec import Outline, Sizes
from specjax.models.config import DecoderConfig, dense_like
from specjax.models.frozen import Frozen
from specjax.models.layers.attention import looking_back
from specjax.models.layers.rope import Rope
from specjax.models.surgery import ends_dense, start_from
from specjax.models.target import Target
from specjax.models.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class DFlash(DFlashKind):
    """A DFlash network as a drafter, before it is known what it will draft for.

    Attributes:
      net: of a `DFlashNet`.
      num_draft: K; None: as many as the block it was trained with holds. Fewer is fine.
      target_ids: [V_draft] int32, the target's id of each row of a head of its own; None: it
        guesses over the target's vocabulary.
      name: for messages.
    """

    net: Frozen
    num_draft: int | None = None
    target_ids: Array | None = None
    name: str = "dflash"

    summary = "a block guessed in one pass from the target's states"
    demo = "demo:dflash"
    outline_sizes = ("taps",)
    __repr__ = one_line

    def bind(self, target: Target, kind: str) -> DFlashDrafter:
        """The drafter for ``target``; its guesses are deterministic whatever ``kind`` says.

        Raises:
          ValueError: if the two do not fit.
        """
        del kind
        refuse(self.name, self.net.config, selector_rank="DFlash2", markov_rank="DSpark")
        return DFlashDrafter(*parts(self, target))

    @classmethod
    def fresh(
        cls,
        target: Target,
        *,
        num_draft: int,
        seed: int = 0,
        from_target: bool | None = False,
        **sizes: Any,
    ) -> DFlash:
        """A randomly initialised one for ``target``, see `fresh_config`.

        With ``from_target`` its layers begin as the target's last ones (`start_from`); None: where
        those are dense attention and gated MLPs.
        """
        config = fresh_config(target.config, num_draft, **sizes)
        return cls(fresh_net(config, target, seed, from_target))

    @classmethod
    def outline(cls, target: Any, sizes: Sizes) -> Outline:
        """The sizes that z-lab publishes for targets of this width; all layers are full."""
        if sizes.taps > target.num_layers:
            raise ValueError(f"draft_taps={sizes.taps}: the target has {target.num_layers} layers.")
        config = fresh_config(
            target, sizes.num_draft, layers=sizes.layers or 5, num_taps=sizes.taps or 5
        )
        return Outline(DFlashNet, config)


@pytree
class DFlashDrafter:
    """The cycle's side of `DFlash`; DFlash2 and DSpark differ in how they choose guesses."""

    net: Any  # models.Frozen of a DFlashNet
    vocabulary: Vocabulary  # the target's own tables
    target_ids: Array | None
    num_draft: int = static()
    kind: str = static(default="one_hot")

    @property
    def config(self) -> DFlashConfig:
        made: DFlashConfig = self.net.config
        return made

    @property
    def taps(self) -> tuple[int, ...]:
        return self.config.taps

    def init(self, rows: int, slots: int) -> Any:
        return self.net.init_cache(rows, slots)

    def prefill(self, draft: Any, tokens: Array, count: Array, features: Array | None) -> Any:
        del tokens
        return self._append(draft, count, features)

    def propose(self, draft: Any, context: Context) -> tuple[Proposal, Any]:
        h = self.states(draft, context)
        guesses, q = draw_all(self.logits(h), self.kind, context, lambda: self.best(h))
        return Proposal(tokens=guesses, q=q), draft

    def update(self, held: Any, kept: Kept) -> Any:
        return self._append(held, kept.count, kept.features)

    def cut(self, draft: Any, length: Array) -> Any:
        return draft.cut(length)

    def grow(self, draft: Any, slots: int) -> Any:
        return draft.grow(slots)

    def _append(self, cache: Cache, count: Array, features: Array | None) -> Cache:
        """Commits the context of ``count`` [B] of T more tokens with ``features`` [B, T, F]."""
        assert features is not None
        positions = cache.length[:, None] + jnp.arange(features.shape[1])[None, :]
        return cache.commit(self.net.module.to_commit(features, positions), count)

    def states(self, cache: Cache, context: Context) -> Array:
        """One pass over the block: the states [B, K, D] that the guesses are made from."""
        config, k = self.config, self.num_draft
        slots = k if config.shifted else k + 1
        offsets = jnp.arange(slots)
        positions = cache.length[:, None] + offsets[None, :]
        look = looking_back(cache, block_views(config, slots))
        net = self.net.module
        # All masks are one row of the embedding, looked up once.
        pending = context.pending
        tokens = jnp.concatenate([pending, jnp.full_like(pending, config.mask_token_id)], axis=1)
        anchor, mask = jnp.split(embed(net, config, self.vocabulary, tokens), 2, axis=1)
        masks = jnp.broadcast_to(mask, (mask.shape[0], slots - 1, mask.shape[2]))
        x = jnp.concatenate([anchor, masks], axis=1)
        h = net.block(x, positions, offsets, look)
        found: Array = h[:, slots - k :]
        return found

    def logits(self, h: Array) -> Array:
        """States [B, K, D] -> logits [B, K, V] float32, -inf for what it cannot guess."""
        logits = head(self.net.module, self.config, self.vocabulary, h)
        return onto_target(logits, self.target_ids, self.vocabulary.output.shape[0])

    def best(self, h: Array) -> Array | None:
        """The likeliest token of each state [B, K], if it is known without `logits`."""
        if type(self).logits is not DFlashDrafter.logits:
            return None
        config, found = self.config, None
        # (Of logits that are rounded anew two more may be equal.)
        plain = config.output_multiplier == 1.0 and config.logit_softcap is None
        if plain and config.draft_vocab_size is None:
            found = self.vocabulary.likeliest(h, self.target_ids)
        logits = head(self.net.module, config, self.vocabulary, h)
        return best_of(logits, self.target_ids, found, self.net.platform)


def embed(net: DFlashNet, config: DFlashConfig, vocabulary: Vocabulary, tokens: Array) -> Array:
    """Tokens [B, T] -> the block's input [B, T, D]."""
    x = net.embed_tokens(tokens) if config.own_embedding else vocabulary.embed(tokens)
    return x if config.embedding_scale == 1.0 else x * config.embedding_scale


def head(net: DFlashNet, config: DFlashConfig, vocabulary: Vocabulary, h: Array) -> Array:
    """Final states [..., D] -> logits [..., V_draft] float32."""
    own = config.draft_vocab_size is not None
    logits = net.lm_head(h.astype(jnp.float32)) if own else vocabulary.head(h)
    if config.output_multiplier != 1.0:
        logits = logits * config.output_multiplier
    cap = config.logit_softcap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def refuse(name: str, config: DFlashConfig, **fields: str) -> None:
    """Raises ValueError if the network has a part that this drafter would ignore."""
    for field, kind in fields.items():
        if getattr(config, field):
            raise ValueError(
                f"{name} has a {field} of {getattr(config, field)}: use drafters.{kind}."
            )


def parts(spec: Any, target: Target) -> tuple[Frozen, Vocabulary, Array | None, int]:
    """The fields of a bound drafter of the family, checked against ``target`` (a `Model`).

    Raises:
      ValueError: naming what does not fit.
    """
    config: DFlashConfig = spec.net.config
    num_draft = config.max_guesses if spec.num_draft is None else spec.num_draft
    check_num_draft(num_draft)
    if num_draft > config.max_guesses:
        raise ValueError(
            f"num_draft={num_draft}: {spec.name} was trained with blocks of {config.block_size} "
            f"tokens and guesses at most {config.max_guesses}."
        )
    check_fits(
        spec.name,
        target,
        vocab_size=config.backbone.vocab_size,
        target_hidden_size=config.target_hidden_size,
        taps=config.taps,
    )
    if config.mask_token_id >= target.net.vocabulary.embedding.shape[0]:
        raise ValueError(
            f"{spec.name}: mask_token_id={config.mask_token_id} lies outside the embedding of "
            f"{target.name}, which has {target.config.vocab_size} rows."
        )
    borrows = config.draft_vocab_size is None or not config.own_embedding
    if borrows and config.backbone.hidden_size != target.config.hidden_size:
        raise ValueError(
            f"{spec.name} has width {config.backbone.hidden_size} and no tables of its own, but "
            f"the tables of {target.name} have width {target.config.hidden_size}."
        )
    return spec.net, target.net.vocabulary, spec.target_ids, num_draft


def default_taps(num_layers: int, num_taps: int) -> tuple[int, ...]:
    """Evenly spread outputs of layers, as z-lab chooses them, as indices into hidden_states.

    Layer ``round(1 + i (N - 4) / (K - 1))`` for i = 0..K-1, from the second to the third from
    last; where the target is too shallow for that, from the first to the last but one. Up to five,
    as published drafters have, may repeat in a target of fewer layers.

    Raises:
      ValueError: for more taps than there are layers.
    """
    if not 1 <= num_taps <= max(num_layers, 5):
        raise ValueError(f"num_taps={num_taps}: the target has {num_layers} layers to tap.")
    if num_taps == 1:
        return (num_layers // 2 + 1,)
    first, last = (1, num_layers - 3) if num_layers - 3 > num_taps else (0, num_layers - 2)
    step = max(last - first, 0) / (num_taps - 1)
    return tuple(round(first + i * step) + 1 for i in range(num_taps))


def fresh_config(
    target: DecoderConfig,
    num_draft: int,
    *,
    layers: int = 1,
    num_taps: int = 2,
    taps: tuple[int, ...] | None = None,
    mask_token_id: int | None = None,
    window: int | None = None,
    shifted: bool = False,
    intermediate_size: int | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    rope_theta: float | None = None,
    **variant: Any,
) -> DFlashConfig:
    """A config of the target's own width whose blocks hold ``num_draft`` guesses.

    Args:
      target: its config.
      num_draft: K.
      layers: of the draft.
      num_taps: how many states are tapped, evenly spread, unless ``taps`` names them.
      mask_token_id: an id that the text does not hold; by default the last one.
      window: of every layer; None: full attention.
      shifted: slot j guesses the token after its own.
      intermediate_size, num_heads, num_kv_heads, head_dim, rope_theta: by default the target's.
      **variant: further fields of `DFlashConfig`.
    """
    theirs = getattr(target, "rope", Rope(10000.0))
    backbone = dense_like(
        target,
        "qwen3",
        layers=layers,
        rope=dataclasses.replace(theirs, theta=rope_theta or theirs.theta, scaling=None),
        intermediate_size=intermediate_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
    )
    return DFlashConfig(
        backbone=backbone,
        taps=tuple(taps) if taps else default_taps(target.num_layers, num_taps),
        target_hidden_size=target.hidden_size,
        block_size=num_draft if shifted else num_draft + 1,
        mask_token_id=target.vocab_size - 1 if mask_token_id is None else mask_token_id,
        windows=(window,) * layers,
        causal=(False,) * layers,
        shifted=shifted,
        **variant,
    )


def fresh_net(config: DFlashConfig, target: Target, seed: int, from_target: bool | None) -> Frozen:
    """A network with random weights; with ``from_target`` it begins as `start_from` says."""
    net = Frozen.of(DFlashNet(config, dtype=target.dtype, rngs=nnx.Rngs(seed)))
    if from_target is None:
        from_target = ends_dense(target, config.backbone.num_layers)
    return start_from(net, target) if from_target else net
