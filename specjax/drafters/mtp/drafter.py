"""MTP as a drafter: the target's heads for further tokens.

One is run K times (`drafters.pairs`), of several each makes its own guess (`mtp.several`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.core.cache import Block, Cache
from specjax.core.types import Array, one_line, pytree, static
from specjax.core.view import View
from specjax.drafters.base import Context, check_fits, check_kind, check_num_draft
from specjax.drafters.drawing import draw
from specjax.drafters.mtp.kind import MTPKind
from specjax.drafters.mtp.net import MTPConfig, MTPNet, default_recycle, first_heads
from specjax.drafters.mtp.several import MTPHeadsDrafter
from specjax.drafters.pairs import PairDrafting
from specjax.drafters.spec import Outline, Sizes
from specjax.models.frozen import Frozen
from specjax.models.joining import separate
from specjax.models.target import Target
from specjax.models.vocabulary import Vocabulary
from specjax.sampling import Counts

RECYCLED = ("normed", "raw")


@dataclasses.dataclass(frozen=True, eq=False)
class MTP(MTPKind):
    """Heads for further tokens, before they are bound to their target.

    Attributes:
      net: of an `MTPNet`.
      num_draft: K, guesses a cycle; where there are fewer heads, the last is run again.
      kind: how they are drawn, see `drafters.drawing`; None: what suits the request.
      name: for messages.
    """

    net: Frozen
    num_draft: int = 3
    kind: str | None = None
    name: str = "mtp"

    summary = "the target's own head for further tokens, or one trained for it"
    __repr__ = one_line

    def bind(self, target: Target, kind: str) -> MTPDrafter | MTPHeadsDrafter:
        """The drafter for ``target``; ``kind`` is what to use where the user did not say.

        Raises:
          ValueError: if the two do not fit.
        """
        config: MTPConfig = self.net.config
        check_num_draft(self.num_draft)
        check_kind(self.kind)
        if config.recycle not in RECYCLED:
            raise ValueError(f"recycle={config.recycle!r}: must be one of {', '.join(RECYCLED)}.")
        check_fits(
            self.name,
            target,
            vocab_size=config.backbone.vocab_size,
            target_hidden_size=config.backbone.hidden_size,
            taps=config.taps,
        )
        net = first_heads(self.net, self.num_draft)
        several = net.config.heads > 1
        parts = (net, target.net.vocabulary, self.num_draft, self.kind or kind)
        return MTPHeadsDrafter(*parts) if several else MTPDrafter(*parts)

    @classmethod
    def fresh(
        cls,
        target: Target,
        *,
        num_draft: int,
        seed: int = 0,
        kind: str | None = None,
        **sizes: Any,
    ) -> MTP:
        """One that begins close to the target's last layer of the kind that a head has.

        Its projection passes the target's state on, and little of the embedding. ``sizes`` may say
        ``recycle`` and ``heads``, see `MTPConfig`.

        Raises:
          ValueError: if the target's family is none that is registered, or a head has no guess.
        """
        config = fresh_config(target.config, **sizes)
        if config.heads > num_draft:
            raise ValueError(
                f"sizes.heads={config.heads}: with num_draft={num_draft} not every head makes a "
                "guess; ask for as many guesses at least."
            )
        net = MTPNet(config, dtype=target.dtype, rngs=nnx.Rngs(seed))
        width = target.config.hidden_size
        for head in net.heads if not net.shared else list(net.heads)[:1]:
            weight = head.eh_proj.weight
            passed = jnp.eye(width, dtype=weight[...].dtype)
            weight[...] = jnp.concatenate([0.1 * weight[...][:, :width], passed], axis=1)
        shapes = lambda layer: jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(layer)))
        layers = list(target.net.module.layers)
        for head in net.heads:
            for layer in reversed(layers):
                separate(layer)
                if shapes(layer) == shapes(head.layer):
                    nnx.update(head.layer, jax.tree.map(jnp.copy, nnx.state(layer)))
                    break
        return cls(Frozen.of(net), num_draft, kind)

    @classmethod
    def outline(cls, target: Any, sizes: Sizes) -> Outline:
        """The one layer that is published."""
        del sizes
        return Outline(MTPNet, fresh_config(target))


def fresh_config(target: Any, *, recycle: str = "", heads: int = 1) -> MTPConfig:
    """For a target of that config, by itself on its devices."""
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
        raise ValueError(f"sizes.heads={heads!r}: must be a whole number, at least 1.")
    recycle = recycle or default_recycle(target, heads)
    if recycle not in RECYCLED:
        raise ValueError(f"sizes.recycle={recycle!r}: must be one of {', '.join(RECYCLED)}.")
    return MTPConfig(dataclasses.replace(target, kv_repeat=1), recycle, heads)


@pytree
class MTPDrafter(PairDrafting):
    """The cycle's side of `MTP`."""

    net: Any  # models.Frozen of an MTPNet
    vocabulary: Vocabulary  # the target's own tables
    num_draft: int = static()
    kind: str = static()

    def fuse(self, features: Array | None) -> Array:
        assert features is not None
        return features.astype(self.net.module.dtype)

    def read(
        self, x: Array, tokens: Array, cache: Cache, view: View, before: Block | None = None
    ) -> tuple[Array, Array, Block]:
        embedded = self.vocabulary.embed(tokens)
        found: tuple[Array, Array, Block] = self.net.module(x, embedded, cache, view, before)
        return found

    def draw(
        self, normed: Array, index: Array, counts: Counts | None, context: Context
    ) -> tuple[Array, Array | None]:
        x, head = normed[:, 0], self.vocabulary
        return draw(head.head(x), self.kind, index, counts, context, lambda: head.likeliest(x))
