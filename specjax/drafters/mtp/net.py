"""A head for further tokens (DeepSeek-AI 2024, arXiv:2412.19437), of any family.

From the target's final state of a token and the embedding of the token after it, one layer of the
target's own family makes the state from which the target's head guesses the token after that:

    x      = W_eh [ norm_e(e) ; norm_h(h) ]
    h'     = norm(layer(x))           of the pairs that were read
    logits = W_head h'                the target's head
    fed back in the place of h: h', or what was normed to it
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from specjax.core.cache import Block, Cache, empty
from specjax.core.ops import activation_dtype
from specjax.core.types import Array
from specjax.core.view import View
from specjax.models.layers.linear import Linear
from specjax.models.layers.placed import Placed
from specjax.models.layers.reading import Reading
from specjax.models.registry import family


@dataclasses.dataclass(frozen=True)
class MTPConfig:
    """``backbone`` is the target's own config, whose ``model_type`` names the family.

    Sources differ in what is fed back. Here it is the normed state, unless ``recycle`` says "raw".
    """

    backbone: Any
    recycle: str = "normed"

    @property
    def taps(self) -> tuple[int, ...]:
        """The final state."""
        return (self.backbone.num_layers,)


class MTPNet(Placed):
    """Attribute names are DeepSeek's, but for ``norm``, its ``shared_head.norm``."""

    def __init__(self, config: MTPConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        c, cls = config.backbone, family(config.backbone.model_type)
        norm: dict[str, Any] = {"eps": c.rms_norm_eps, "dtype": dtype, "rngs": rngs}
        width = c.hidden_size
        self.enorm, self.hnorm = cls.norm_kind(width, **norm), cls.norm_kind(width, **norm)
        self.eh_proj = Linear(2 * width, width, axes=("fused", None), dtype=dtype, rngs=rngs)
        self.layer: Any = cls.make_nextn_layer(c, dtype=dtype, rngs=rngs)
        self.norm = cls.norm_kind(width, **norm)
        self.config = config

    @staticmethod
    def used_share(config: MTPConfig, weight: str) -> float:
        """See `Decoder.used_share`."""
        share: float = family(config.backbone.model_type).used_share(config.backbone, weight)
        return share

    @property
    def dtype(self) -> jnp.dtype:
        """The type of states and cache."""
        return activation_dtype(self.eh_proj.weight[...].dtype, self.platform)

    def __call__(
        self, x: Array, embedded: Array, cache: Cache, view: View, before: Block | None = None
    ) -> tuple[Array, Array, Block]:
        """One pass over T pairs behind the cache, and behind those of the block ``before`` them.

        Args:
          x: [B, T, D], final states of the target, or states that were fed back.
          embedded: [B, T, D], the tokens after them.
          cache: of pairs.
          view: where the pairs stand, and what they see of the block.

        Returns:
          The states to feed back [B, T, D], those for the head [B, T, D], what to commit.
        """
        x, embedded = x.astype(self.dtype), embedded.astype(self.dtype)
        x = self.eh_proj(jnp.concatenate([self.enorm(embedded), self.hnorm(x)], axis=-1))
        x = self.constrain(x, "batch", None, None)
        fed = None if before is None else before[0]
        x, part = self.layer(x, cache.layers[0], fed, Reading(cache.length, view))
        x = self.constrain(x, "batch", None, None)
        normed = self.norm(x)
        return normed if self.config.recycle == "normed" else x, normed, (part,)

    def init_cache(self, rows: int, slots: int) -> Cache:
        """An empty cache of pairs, in the type of the activations."""
        return empty((self.layer.init_entry(rows, slots, self.dtype),), rows)
