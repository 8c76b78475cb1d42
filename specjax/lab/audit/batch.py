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
from specjax.core.keys import row_keys
from specjax.drafters.base import Bound, Context, Drafter
from specjax.sampling import Counts, make_sampling
from specjax.session import Row
from specjax.verify import Rule

_ALL = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class Batch:
    """What is decoded, by whom, under which rule."""

    target: Model
    drafter: Drafter
    rule: Rule
    rows: tuple[Row, ...]
    request: decode.Request
    prompt_lengths: np.ndarray  # [B] int32

    @classmethod
    def of(cls, target: Model, drafter: Drafter, rule: Rule, rows: Sequence[Row]) -> Batch:
        kinds = {id(r.options): r.options for r in rows}  # few, and dear to read one by one
        place = {name: i for i, name in enumerate(kinds)}
        which = jnp.asarray([place[id(r.options)] for r in rows])
        sampling = make_sampling(list(kinds.values()), target.config.vocab_size)
        sampling = jax.tree.map(lambda column: column[which], sampling)
        lengths = np.asarray([len(r.prompt) for r in rows], np.int32)
        stops = np.full((len(rows), max(1, *(len(r.stop_token_ids) for r in rows))), -1, np.int32)
        for ids, row in zip(stops, rows):
            ids[: len(row.stop_token_ids)] = row.stop_token_ids
        request = decode.Request(
            keys=row_keys(jnp.asarray([r.seed for r in rows], jnp.uint32)),
            limit=jnp.asarray(lengths + np.asarray([r.max_new_tokens for r in rows], np.int32)),
            stop_ids=jnp.asarray(stops),
            sampling=dataclasses.replace(sampling, greedy=rule.greedy_only),
        )
        return cls(target, drafter, rule, tuple(rows), request, lengths)

    @property
    def new(self) -> int:
        """The most new tokens of a row."""
        return max(r.max_new_tokens for r in self.rows)

    def start(self) -> decode.DecodeState:
        """The state after the prompts."""
        width = int(self.prompt_lengths.max())
        vocab, slots = self.target.config.vocab_size, width + self.new + self.drafter.num_draft + 1
        tokens = np.zeros((len(self.rows), slots), np.int32)
        seen = np.zeros((len(self.rows), vocab), bool)
        for b, row in enumerate(self.rows):
            tokens[b, : len(row.prompt)] = row.prompt
            seen[b, list(row.prompt)] = True
        counts = None
        if self.request.sampling.uses_counts:
            counts = Counts(jnp.asarray(seen), jnp.zeros(seen.shape, jnp.int32))
        state = decode.init_program(
            self.target.net,
            self.drafter,
            jnp.asarray(tokens),
            jnp.asarray(self.prompt_lengths),
            jnp.zeros((len(self.rows),), jnp.bool_),
            counts,
        )
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
