"""What the tokens of a block see of one another, and how far from the cache they stand.

T tokens are fed in one call, after P of the same block that were fed before them; U = P + T.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from specjax.core import trees
from specjax.core.types import Array, Parents, pytree

_CONSTANT = 1 << 14  # pairs of tokens: masks up to these are constants of a program


@pytree
class Ranges:
    """Of which tokens of a block each of its last T sees all, and no other: begin..end - 1."""

    begin: Array  # [B or 1, T] int32
    end: Array  # [B or 1, T] int32


@pytree
class View:
    """Where the U tokens of a block stand, and what the last T of them see of it.

    What they see of the cache is the entries' business: all of it, or a window. Recurrent layers
    need ``visible`` to be lines of ancestors, the token itself included; attention takes any.
    """

    depth: Any  # [B or 1, U] int32: a token's position less the cache's length
    visible: Any  # [B or 1, T, U] bool
    # The same, where that is known, with depths that are one more from token to token in a range:
    # attention over a block alone then makes no mask.
    ranges: Ranges | None = None
    made: Any = None  # `visible` as it was made of `ranges`

    @classmethod
    def over(cls, depth: Any, ranges: Ranges) -> View:
        """Of a block whose tokens, all of them, see ranges of it."""
        visible = mask(ranges, ranges.end.shape[1])
        return cls(depth, visible, ranges, visible)

    @property
    def known_ranges(self) -> Ranges | None:
        """`ranges`, if nobody has put another mask in the place of theirs."""
        return self.ranges if self.visible is self.made else None

    @classmethod
    def chain(cls, num_tokens: int, num_before: int = 0) -> View:
        """One token after the other: each sees those before it, and itself."""
        depth = jnp.arange(num_before + num_tokens)[None, :]
        return cls(depth, causal(num_tokens, num_before))

    @classmethod
    def tree(cls, parents: Parents) -> View:
        """The whole block of a tree: each place sees its ancestors and itself. Constants."""
        return cls(trees.depths(parents)[None], trees.ancestors(parents)[None])

    @property
    def num_tokens(self) -> int:
        """T."""
        count: int = self.visible.shape[1]
        return count

    def positions(self, length: Array) -> Array:
        """[B, T] int32 of the T tokens, behind caches of ``length`` [B]."""
        found: Array = length[:, None] + self.depth[:, -self.num_tokens :]
        return found


def causal(num_tokens: int, num_before: int = 0) -> Any:
    """[1, T, P + T] bool: token i sees the P tokens of the block before it and tokens 0..i."""
    # A constant need not be made in every pass, which on a GPU is a kernel.
    xp: Any = np if num_tokens * (num_before + num_tokens) <= _CONSTANT else jnp
    seen, index = xp.arange(num_before + num_tokens), xp.arange(num_tokens)
    return (seen[None, :] <= num_before + index[:, None])[None]


def mask(ranges: Ranges, num_tokens: int) -> Array:
    """[B or 1, T, U] bool of a block of U = ``num_tokens``."""
    place = jnp.arange(num_tokens)[None, None, :]
    seen: Array = (ranges.begin[..., None] <= place) & (place < ranges.end[..., None])
    return seen
