"""One rotary key and one compressed vector a token, from which every head has its keys and values.

The memory of multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434): slot = position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from specjax.core.cache import slots as lay
from specjax.core.cache.block import Part
from specjax.core.cache.full import Full, valid_slots
from specjax.core.ops import Cached, attend
from specjax.core.platform import Platform
from specjax.core.types import Array, pytree, static
from specjax.core.view import View


@pytree
class Latent(Full):
    """A `Full` entry with one head.

    ``keys`` are the rotary ones [B, 1, S, Hr], ``values`` the compressed vectors [B, 1, S, C],
    which are part of the keys as well.
    """

    axis: str | None = static(default=None)  # one head, which all devices of a mesh read
    # The logical axis of query heads on a mesh; None: every device has all of them.
    heads: str | None = static(default="heads")

    @classmethod
    def empty(  # type: ignore[override]
        cls, rows: int, slots: int, rotary_dim: int, rank: int, dtype: jnp.dtype
    ) -> Latent:
        """Zeros: rotary keys of ``rotary_dim`` and compressed vectors of ``rank`` numbers."""
        new = lambda size: lay.zeros(rows, 1, slots, size, dtype, None)
        return cls(new(rotary_dim), new(rank))

    def attend(  # type: ignore[override]
        self,
        q: tuple[Array, Array],
        new: Part,
        length: Array,
        view: View,
        *,
        scale: float,
    ) -> Array:
        """Attention in the compressed space.

        Args:
          q: rotary queries [B, N, T, Hr], and those whose product with a compressed vector is that
            of query and key, [B, N, T, C].
          new: rotary keys [B, 1, U, Hr] and compressed vectors [B, 1, U, C] of the block.
          length: [B], the cache's.

        Returns:
          Weighted compressed vectors [B, N, T, C], of which a head makes its values.
        """
        keys, compressed = new
        cached = None
        if self.keys.shape[2]:
            seen = valid_slots(self.keys.shape[2], length)[:, None]
            known = (self.keys, self.values)
            cached = Cached(known, self.values, seen, length, (self.heads, None))
        return attend(
            q,
            (keys, compressed),
            compressed,
            view.visible,
            cached,
            scale=scale,
            platform=self.platform,
        )

    def attend_written(
        self,
        q: Array,
        new: Part,
        length: Array,
        view: View,
        write: Callable[[Array, Array], tuple[Array, Array]],
        *,
        scale: float,
    ) -> Array:
        """The same with the keys and values of all heads written out, for many queries at once.

        Args:
          q: [B, N, T, H].
          new, length: as for `attend`.
          write: from rotary keys [B, 1, S, Hr] and compressed vectors [B, 1, S, C] makes keys
            [B, N, S, H] and values [B, N, S, Hv].

        Returns:
          [B, N, T, Hv].
        """
        cached = None
        if self.keys.shape[2]:
            seen = valid_slots(self.keys.shape[2], length)[:, None]  # [B, 1, S]

            def of_seen(keys: Array, values: Array, seen: Array) -> tuple[Array, Array]:
                # What is stale might overflow.
                return write(keys, jnp.where(seen[..., None], values, 0))

            cached = Cached(self.keys, self.values, seen, length, write=of_seen)
        return attend(q, *write(*new), view.visible, cached, scale=scale, platform=self.platform)

    def placed(self, platform: Platform | None, replicated: bool) -> Latent:
        heads = None if replicated else self.heads
        return dataclasses.replace(self, heads=heads, platform=platform)
