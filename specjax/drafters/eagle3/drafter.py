"""EAGLE-3 (Li et al. 2025, arXiv:2503.01840) and EAGLE-3.1: guesses from fused target features.

What it does in a cycle is `drafters.pairs`; the network is `net`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from specjax.core.cache import Block, Cache
from specjax.core.types import Array, one_line, pytree, static
from specjax.core.view import View
from specjax.drafters.base import Context, check_fits, check_kind, check_num_draft
from specjax.drafters.drawing import best_of, draw, onto_target
from specjax.drafters.eagle3.kind import Eagle3Kind
from specjax.drafters.eagle3.net import Eagle3Config, Eagle3Net
from specjax.drafters.pairs import PairDrafting
from specjax.drafters.spec import Outline, Sizes
from specjax.models.config import DecoderConfig, dense_like
from specjax.models.frozen import Frozen
from specjax.models.layers.latent import LatentConfig
from specjax.models.target import Target
from specjax.models.vocabulary import Vocabulary
from specjax.sampling import Counts


@dataclasses.dataclass(frozen=True, eq=False)
class Eagle3(Eagle3Kind):
    """An EAGLE-3 network as a drafter, before it is known what it will draft for.

    Attributes:
      net: of an `Eagle3Net`.
      num_draft: K, guesses a cycle.
      kind: how they are drawn, see `drafters.drawing`; None: what suits the request.
      target_ids: [V_draft] int32, the target's id of each draft id; None: the two are the same.
      name: for messages.
    """

    net: Frozen
    num_draft: int = 5
    kind: str | None = None
    target_ids: Array | None = None
    name: str = "eagle3"

    __repr__ = one_line

    def bind(self, target: Target, kind: str) -> Eagle3Drafter:
        """The drafter for ``target``; ``kind`` is what to use where the user did not say.

        Raises:
          ValueError: if the two do not fit.
        """
        config: Eagle3Config = self.net.config
        check_num_draft(self.num_draft)
        check_kind(self.kind)
        check_fits(
            self.name,
            target,
            vocab_size=config.backbone.vocab_size,
            target_hidden_size=config.target_hidden_size,
            taps=config.taps,
        )
        check_target_ids(self.name, self.target_ids, config)
        own = config.own_embedding and config.own_head
        if not own and config.backbone.hidden_size != target.config.hidden_size:
            what = "head" if config.own_embedding else "embedding"
            raise ValueError(
                f"{self.name} has width {config.backbone.hidden_size} and no {what} of its own, "
                f"but that of {target.name} has width {target.config.hidden_size}."
            )
        vocabulary = target.net.vocabulary
        return Eagle3Drafter(
            self.net, vocabulary, self.target_ids, self.num_draft, self.kind or kind
        )

    @classmethod
    def fresh(
        cls,
        target: Target,
        *,
        num_draft: int,
        seed: int = 0,
        kind: str | None = None,
        target_ids: Any = None,
        **sizes: Any,
    ) -> Eagle3:
        """A randomly initialised one whose head is the target's own, see `fresh_config`."""
        ids = None if target_ids is None else jnp.asarray(target_ids, jnp.int32)
        rows = target.config.vocab_size if ids is None else len(ids)
        config = fresh_config(target.config, draft_vocab_size=rows, **sizes)
        check_target_ids("eagle3", ids, config)
        net = Eagle3Net(config, dtype=target.dtype, rngs=nnx.Rngs(seed))
        if not config.own_head:
            return cls(Frozen.of(net), num_draft, kind, ids)
        head = target.net.vocabulary.output
        net.lm_head.weight[...] = (head if ids is None else head[ids]).astype(target.dtype)
        return cls(Frozen.of(net), num_draft, kind, ids)

    @classmethod
    def outline(cls, target: Any, sizes: Sizes) -> Outline:
        """One layer and a vocabulary of its own, as SafeAILab publishes them.

        With latent attention, as Kimi's are published.
        """
        rows = sizes.vocab or target.vocab_size
        if not 1 <= rows <= target.vocab_size or rows % sizes.shards:
            raise ValueError(
                f"draft_vocab={rows}: must be a multiple of {sizes.shards}, the devices of the "
                f"model axis, and at most {target.vocab_size}."
            )
        if sizes.latent and not hasattr(target, "latent"):
            raise ValueError(
                f"draft_latent=True: a {target.model_type} model has no latent attention to take "
                "sizes from; leave it out."
            )
        how: dict[str, Any] = {"layers": sizes.layers or 1, "latent": sizes.latent}
        config = fresh_config(target, draft_vocab_size=rows, **how)
        return Outline(Eagle3Net, config, {"target_ids": np.arange(rows, dtype=np.int32)})


@pytree
class Eagle3Drafter(PairDrafting):
    """The cycle's side of `Eagle3`."""

    net: Any  # models.Frozen of an Eagle3Net
    vocabulary: Vocabulary  # the target's own tables
    target_ids: Array | None
    num_draft: int = static()
    kind: str = static()

    def fuse(self, features: Array | None) -> Array:
        assert features is not None
        found: Array = self.net.module.fuse(features)
        return found

    def read(
        self, x: Array, tokens: Array, cache: Cache, view: View, before: Block | None = None
    ) -> tuple[Array, Array, Block]:
        own = self.net.config.own_embedding
        net = self.net.module
        embedded = net.embed_tokens(tokens) if own else self.vocabulary.embed(tokens)
        found: tuple[Array, Array, Block] = net(x, embedded, cache, view, before)
        return found

    def draw(
        self, normed: Array, index: Array, counts: Counts | None, context: Context
    ) -> tuple[Array, Array | None]:
        net, ids, x = self.net.module, self.target_ids, normed[:, 0]
        logits = net.head(x, self.vocabulary)

        def best() -> Array | None:
            found = net.likeliest(x, self.vocabulary, ids)
            return best_of(logits, ids, found, self.net.platform)

        wide = onto_target(logits, ids, self.vocabulary.output.shape[0])
        return draw(wide, self.kind, index, counts, context, best)


def check_target_ids(name: str, target_ids: Array | None, config: Eagle3Config) -> None:
    """Raises ValueError unless the ids name a different token of the target for each draft id."""
    rows, vocab = config.draft_vocab_size, config.backbone.vocab_size
    if target_ids is None:
        if rows != vocab:
            raise ValueError(
                f"{name} guesses over {rows} tokens of the target's {vocab}: say which they are "
                "(target_ids)."
            )
        return
    ids = np.asarray(target_ids)
    if ids.shape != (rows,):
        raise ValueError(f"{name} has {rows} draft tokens, but target_ids has shape {ids.shape}.")
    if ids.min() < 0 or ids.max() >= vocab or len(np.unique(ids)) != rows:
        raise ValueError(f"{name}: target_ids must be {rows} different ids from 0 to {vocab - 1}.")


def default_taps(num_layers: int) -> tuple[int, int, int]:
    """After layers 2, L/2 and L - 3, as the authors chose; evenly spread in a shallow target."""
    if num_layers >= 7:
        return (2, num_layers // 2, num_layers - 3)
    last = max(num_layers - 1, 1)
    return (1, (1 + last) // 2, last)


def fresh_config(
    target: DecoderConfig,
    *,
    draft_vocab_size: int,
    layers: int = 1,
    taps: tuple[int, ...] | None = None,
    intermediate_size: int | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    latent: LatentConfig | bool = False,
    **variant: bool,
) -> Eagle3Config:
    """A config of the target's own width, whose embedding it borrows.

    Args:
      target: its config.
      draft_vocab_size: rows of the head.
      layers: of the draft.
      taps: indices into hidden_states; None: `default_taps`.
      intermediate_size, num_heads, num_kv_heads, head_dim: by default the target's.
      latent: sizes of latent attention; True: the target's; False: it has grouped queries.
      **variant: further fields of `Eagle3Config`.

    Raises:
      ValueError: naming a size that the target has not.
    """
    theirs = latent if isinstance(latent, LatentConfig) else getattr(target, "latent", None)
    if latent and theirs is None:
        raise ValueError(
            f"sizes.latent: a {target.model_type} model has no latent attention to take sizes from."
        )
    backbone = dense_like(
        target,
        "llama",
        layers=layers,
        intermediate_size=intermediate_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
    )
    return Eagle3Config(
        backbone=backbone,
        taps=tuple(taps) if taps else default_taps(target.num_layers),
        target_hidden_size=target.hidden_size,
        draft_vocab_size=draft_vocab_size,
        latent=dataclasses.replace(theirs, eps=target.rms_norm_eps) if latent and theirs else None,
        **variant,
    )
