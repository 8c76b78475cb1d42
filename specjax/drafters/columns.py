"""What the passes of training-time test look at: the first as a text, later ones as columns.

A pass over T places is made several times, each time one token further on (`pair_objective`). What
a query sees of the first pass is a range, of each later one its own place: a block of one slot of
`ops.attend_blocks`, with a pass of its own a step. So there are no masks, and no scores between the
columns.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from specjax.core.cache import Full, Part, Ring
from specjax.core.ops import Seen, attend_blocks
from specjax.core.platform import Platform
from specjax.core.types import Array, pytree, static
from specjax.core.view import Ranges, View


@pytree
class Columns:
    """An entry of grouped keys and values, of which nothing is remembered."""

    past: tuple[Part, ...]  # of the passes before
    first: Ranges  # what columns see of the first pass
    window: int | None = static()  # tokens that one sees, itself included
    platform: Platform | None = static()

    @classmethod
    def instead_of(cls, entry: Any, past: tuple[Part, ...], first: Ranges) -> Columns | None:
        """Of a layer whose entry is ``entry``; None: its attention is of another kind."""
        if type(entry) is Full:
            return cls(past, first, None, entry.platform)
        if type(entry) is Ring and not entry.from_start:
            return cls(past, first, entry.window, entry.platform)
        return None

    def attend(
        self,
        q: Array,
        new: Part,
        length: Array,
        view: View,
        *,
        scale: float | None = None,
        sinks: Array | None = None,
    ) -> Array:
        """As `Full.attend`, of the pass ``new``."""
        del length, view
        text, *own = (*self.past, new)
        begin, end = self.first.begin, self.first.end
        if self.window is not None:
            place = jnp.arange(end.shape[1])[None, :]
            begin = jnp.maximum(begin, place + len(self.past) - self.window + 1)
            own = own[-self.window :]
        seen = Seen.columns(begin, end, q.shape[0])
        pairs = tuple((k, v) for k, v in own)
        how: dict[str, Any] = {"scale": scale, "sinks": sinks, "platform": self.platform}
        return attend_blocks(q, pairs, (text[0], text[1]), seen, **how)
