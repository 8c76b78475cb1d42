"""Heads for further tokens (DeepSeek-AI 2024, arXiv:2412.19437), of any family.

From the target's final state of a token and the embedding of the token after it, one layer of the
target's own family makes the state from which the target's head guesses the token after that:

    x      = W_eh [ norm_e(e) ; norm_h(h) ]
    h'     = norm(layer(x))           of the pairs that were read
    logits = W_head h'                the target's head
    fed back in the place of h: h', or what was normed to it

There may be several, one a further token: the next head reads what the one before made of the same
token, and the embedding of the token after next. The last one makes whatever comes behind, its
states moving on along the text, as one head alone makes all.
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
from specjax.models.frozen import Frozen
from specjax.models.layers.linear import Linear
from specjax.models.layers.placed import Placed
from specjax.models.layers.reading import Reading
from specjax.models.layers.residual import given_to, pin, states_of
from specjax.models.registry import family


@dataclasses.dataclass(frozen=True)
class MTPConfig:
    """``backbone`` is the target's own config, whose ``model_type`` names the family.

    Sources differ in what is fed back. Of one head it is the normed state, unless ``recycle`` says
    "raw"; see `default_recycle`.
    """

    backbone: Any
    recycle: str = "normed"
    heads: int = 1

    @property
    def taps(self) -> tuple[int, ...]:
        """The final state."""
        return (self.backbone.num_layers,)


def default_recycle(backbone: Any, heads: int) -> str:
    """What heads hand on where nothing says it: DeepSeek's modules what their layer makes."""
    apart = heads > 1 and not family(backbone.model_type).nextn_shared
    return "raw" if apart else "normed"


class MTPHead(nnx.Module):
    """Attribute names are DeepSeek's, but for ``norm``, its ``shared_head.norm``.

    ``whole``: it has a projection and norms of its own, beside its layer.
    """

    def __init__(self, config: MTPConfig, *, whole: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        c, cls = config.backbone, family(config.backbone.model_type)
        norm: dict[str, Any] = {"eps": c.rms_norm_eps, "dtype": dtype, "rngs": rngs}
        width = c.hidden_size
        if whole:
            self.enorm, self.hnorm = cls.norm_kind(width, **norm), cls.norm_kind(width, **norm)
            self.eh_proj = Linear(2 * width, width, axes=("fused", None), dtype=dtype, rngs=rngs)
        self.layer: Any = cls.make_nextn_layer(c, dtype=dtype, rngs=rngs)
        if whole:
            self.norm = cls.norm_kind(width, **norm)


class MTPNet(Placed):
    """Some families have the projection and the norms once for all heads, in the first."""

    def __init__(self, config: MTPConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.shared = family(config.backbone.model_type).nextn_shared
        wholes = [i == 0 or not self.shared for i in range(config.heads)]
        self.heads = nnx.List([MTPHead(config, whole=w, dtype=dtype, rngs=rngs) for w in wholes])
        self.config = config

    @staticmethod
    def used_share(config: MTPConfig, weight: str) -> float:
        """See `Decoder.used_share`."""
        share: float = family(config.backbone.model_type).used_share(config.backbone, weight)
        return share

    @property
    def dtype(self) -> jnp.dtype:
        """The type of states and cache."""
        return activation_dtype(self.heads[0].eh_proj.weight.get_value().dtype, self.platform)

    def __call__(
        self,
        x: Array,
        embedded: Array,
        cache: Cache,
        view: View,
        before: Block | None = None,
        *,
        head: int = 0,
    ) -> tuple[Array, Array, Block]:
        """One pass of a head over T pairs behind the cache, and behind those of ``before`` them.

        Args:
          x: [B, T, D], final states of the target, states of the head before, or states that were
            fed back.
          embedded: [B, T, D], the tokens after them.
          cache: of pairs, an entry a head.
          view: where the pairs stand, and what they see of the block.
          before: pairs of the block that this head has read.
          head: which one.

        Returns:
          The states to feed back [B, T, D], those for the target's head [B, T, D], what to commit
          of this one.
        """
        x, embedded = x.astype(self.dtype), embedded.astype(self.dtype)
        own = self.heads[head]
        parts = self.heads[0] if self.shared else own
        x = parts.eh_proj(jnp.concatenate([parts.enorm(embedded), parts.hnorm(x)], axis=-1))
        pinned = lambda x: self.constrain(x, "batch", None, None)
        x = given_to(own.layer, pinned(x), self.platform)
        fed = None if before is None else before[0]
        x, part = own.layer(x, cache.layers[head], fed, Reading(cache.length, view))
        x = pin(pinned, x)
        normed = parts.norm(given_to(parts.norm, x, self.platform))
        return normed if self.config.recycle == "normed" else states_of(x), normed, (part,)

    def init_cache(self, rows: int, slots: int) -> Cache:
        """An empty cache of pairs, in the type of the activations."""
        layers = [head.layer for head in self.heads]
        return empty(tuple(x.init_entry(rows, slots, self.dtype) for x in layers), rows)


def first_heads(net: Frozen, count: int) -> Frozen:
    """The network of the first ``count`` heads: the same arrays."""
    if count >= net.config.heads:
        return net
    module = net.module
    module.heads = nnx.List(list(module.heads)[:count])
    module.config = dataclasses.replace(net.config, heads=count)
    return net.with_module(module)
