"""What happens to a state between device calls: it grows, or goes on with other prompts."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.cache import caches_in
from specjax.core.program import Program
from specjax.core.types import Array
from specjax.decode import DecodeState, init_state
from specjax.drafters.base import Drafter, cut
from specjax.sampling import Counts


def resume(
    target: Any,
    drafter: Drafter,
    state: DecodeState,
    tokens: Array,
    length: Array,
    done: Array,
    counts: Counts | None,
    same: Array,
    *,
    with_details: bool = False,
) -> DecodeState:
    """As `init_state` for other prompts, with what is known of them from the texts of ``state``.

    The first ``same`` [B] tokens of each prompt are those of its row's text. The target's cache and
    the drafter's state keep them as far as both can, and `prefill` goes on where ``cache.length``
    says. It is fed at least the last one of ``same`` and the one before the pending token: the
    drafter may have lost what it knew there.
    """
    kept = jnp.clip(jnp.minimum(same - 1, length - 2), 0)

    def reach(length: Array) -> Array:
        parts = [state.cache.cut(length), *caches_in(cut(drafter, state.draft, length))]
        return functools.reduce(jnp.minimum, (part.length for part in parts))

    kept = reach(kept)
    kept = jnp.where(reach(kept) == kept, kept, 0)  # what one part lacks another may need
    fresh = init_state(target, drafter, tokens, length, done, counts, with_details=with_details)
    draft = cut(drafter, state.draft, kept)
    return dataclasses.replace(fresh, cache=state.cache.cut(kept), draft=draft)


def grow(drafter: Drafter, state: DecodeState, *, slots: int) -> DecodeState:
    """The same state with ``slots`` slots."""
    more = slots - state.tokens.shape[1]

    def pad(x: Array, fill: int) -> Array:
        widths = [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, widths, constant_values=fill)

    return dataclasses.replace(
        state,
        tokens=pad(state.tokens, 0),
        cache=state.cache.grow(slots),
        draft=drafter.grow(state.draft, slots),
        trace=jax.tree.map(lambda x: pad(x, -1), state.trace),
    )


resume_program = Program(resume, static_argnames="with_details", donate_argnames="state")
grow_program = Program(grow, static_argnames="slots")
