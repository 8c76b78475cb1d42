"""A batch of equal slots on the programs of `specjax.decode`, looked up at every call.

`Session` starts with hundreds of slots, as texts are long; an audit decodes many thousands of texts
of a few tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from specjax import decode
from specjax.checkpoint.load import Model
from specjax.core.cache import Cache, caches_in
from specjax.drafters.base import Bound, Context, Drafter
from specjax.session import Row
from specjax.session.layout import Layout
from specjax.verify import Rule

_ALL = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class Batch:
    """What is decoded, by whom, under which rule."""

    target: Model
    drafter: Drafter
    rule: Rule
    rows: tuple[Row, ...]
    layout: Layout

    @classmethod
    def of(cls, target: Model, drafter: Drafter, rule: Rule, rows: Sequence[Row]) -> Batch:
        vocab, platform = target.config.vocab_size, target.net.platform
        layout = Layout.of(rows, vocab, greedy=rule.greedy_only, platform=platform)
        return cls(target, drafter, rule, tuple(rows), layout)

    @property
    def request(self) -> decode.Request:
        return self.layout.request

    @property
    def prompt_lengths(self) -> np.ndarray:
        """[B] int32."""
        return self.layout.prompt_lengths

    @property
    def new(self) -> int:
        """The most new tokens of a row."""
        return max(r.max_new_tokens for r in self.rows)

    def start(self) -> decode.DecodeState:
        """The state after the prompts."""
        width = self.layout.longest
        slots = width + self.new + self.drafter.num_draft + 1
        state = decode.init_program(self.target.net, self.drafter, *self.layout.prompts(slots))
        if width == 1:
            return state
        return decode.prefill_program(
            self.target.net, self.drafter, state, jnp.int32(0), width=width - 1
        )

    def advance(self, state: decode.DecodeState, cycles: int = _ALL) -> decode.DecodeState:
        """Decodes at most so many cycles. ``state`` is used up."""
        return decode.run_program(
            self.target.net, self.drafter, self.rule, self.request, state, jnp.int32(cycles)
        )

    def context(self, state: decode.DecodeState) -> Context:
        """What the drafter may look at next."""
        asked = self.request
        return Context(
            state.tokens,
            state.length,
            asked.keys,
            asked.sampling,
            state.counts,
            Bound(self.target.net, state.cache),
            state.done,
        )

    def texts(self, state: decode.DecodeState, pad: int) -> np.ndarray:
        """The new tokens [B, new] of each row, ``pad`` behind its end."""
        tokens, length = np.asarray(state.tokens), np.asarray(state.length)
        place = self.prompt_lengths[:, None] + np.arange(self.new)[None, :]
        return np.where(
            place < length[:, None],
            np.take_along_axis(tokens, np.minimum(place, tokens.shape[1] - 1), axis=1),
            pad,
        )


@jax.jit
def poison(state: decode.DecodeState) -> decode.DecodeState:
    """Fills every slot that is not valid with what must not be read.

    What that is, each kind of entry says (`Entry.stale`): NaN in keys, say. Tokens behind the end
    of the text become other tokens.
    """

    caches = lambda x: x.stale() if isinstance(x, Cache) else x
    state = jax.tree.map(caches, state, is_leaf=lambda x: isinstance(x, Cache))
    behind = jnp.arange(state.tokens.shape[1])[None, :] >= state.length[:, None]
    return dataclasses.replace(state, tokens=jnp.where(behind, 1, state.tokens))


def has_cache(state: decode.DecodeState) -> bool:
    """Whether the drafter keeps a cache."""
    return bool(caches_in(state.draft))
