"""What happens to a state between device calls: it grows, or goes on with other prompts."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.cache import Cache, Mark, caches_in
from specjax.core.program import Program
from specjax.core.types import Array
from specjax.decode import DecodeState, init_state, pin
from specjax.drafters.base import Drafter, cut, reads_ahead
from specjax.models.frozen import Frozen
from specjax.sampling import Counts


def resume(
    target: Frozen,
    drafter: Drafter,
    state: DecodeState,
    tokens: Array,
    length: Array,
    done: Array,
    counts: Counts | None,
    same: Array,
    marks: tuple[Mark, ...] = (),
    *,
    with_details: bool = False,
) -> DecodeState:
    """A state for other prompts, with what is known of them from the texts of ``state``.

    The first ``same`` [B] tokens of each prompt are those of its row's text. The target's cache and
    the drafter's state keep them as far as both can, and `prefill` goes on where ``cache.length``
    says. It is fed at least the last one of ``same`` and the one before the pending token: the
    drafter may have lost what it knew there, or have seen other tokens behind (`reads_ahead`). A
    row that cannot be cut there goes on from ``marks``
    (`mark`), of the same texts, or anew.
    """
    wanted = jnp.clip(jnp.minimum(same - 1 - reads_ahead(drafter), length - 2), 0)
    kept = reach(drafter, state, wanted)
    if marks:
        back = reach(drafter, at_marks(state, marks, jnp.ones_like(done)), wanted)
        state = at_marks(state, marks, back > kept)
        kept = jnp.maximum(kept, back)
    fresh = init_state(target, drafter, tokens, length, done, counts, with_details=with_details)
    draft = cut(drafter, state.draft, kept)
    return dataclasses.replace(fresh, cache=state.cache.cut(kept), draft=draft)


def reach(drafter: Drafter, state: DecodeState, length: Array) -> Array:
    """[B]: how many of the first ``length`` [B] tokens all of ``state`` can be cut to."""

    def least(length: Array) -> Array:
        parts = [state.cache.cut(length), *caches_in(cut(drafter, state.draft, length))]
        return functools.reduce(jnp.minimum, (part.length for part in parts))

    kept = least(length)
    return jnp.where(least(kept) == kept, kept, 0)  # what one part lacks another may need


Losing = tuple[tuple[bool, ...], ...]  # of each cache, which entries


def losing(state: DecodeState, length: int) -> Losing:
    """What texts that grow to ``length`` tokens may leave unable to be cut; empty: nothing."""
    found = tuple(cache.loses(length) for cache in caches_in((state.cache, state.draft)))
    return found if any(map(any, found)) else ()


def mark(state: DecodeState, *, which: Losing) -> tuple[Mark, ...]:
    """What it takes to come back to the texts as they are now: copies of ``which`` entries."""
    caches = caches_in((state.cache, state.draft)) if which else []
    return tuple(cache.mark(some) for cache, some in zip(caches, which, strict=True))


def at_marks(state: DecodeState, marks: tuple[Mark, ...], rows: Array) -> DecodeState:
    """In ``rows`` [B] with the caches of that time. The rest of a drafter's state is `cut`'s."""
    slots, left = state.tokens.shape[1], iter(marks)
    back = lambda x: x.back(next(left), rows, slots) if isinstance(x, Cache) else x
    both = (state.cache, state.draft)
    cache, draft = jax.tree.map(back, both, is_leaf=lambda x: isinstance(x, Cache))
    return dataclasses.replace(state, cache=cache, draft=draft)


def grown(drafter: Drafter, state: DecodeState, slots: int) -> DecodeState:
    """The same state with ``slots`` slots."""
    more = slots - state.tokens.shape[1]

    def pad(x: Array, fill: int) -> Array:
        widths = [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, widths, constant_values=fill)

    return pin(
        dataclasses.replace(
            state,
            tokens=pad(state.tokens, 0),
            cache=state.cache.grow(slots),
            draft=drafter.grow(state.draft, slots),
            record=jax.tree.map(lambda x: pad(x, -1), state.record),
        )
    )


def grow(drafter: Drafter, state: DecodeState, *, slots: int) -> DecodeState:
    """The same state with ``slots`` slots. ``state`` is used up.

    One layer's memory after the other, so that no more than one is there twice. Layers of one shape
    share a program.
    """

    def layers(x: Any) -> Any:
        if not isinstance(x, Cache):
            return x
        entries = tuple(replace_changed(grow_entry_program, slots, entry) for entry in x.layers)
        return dataclasses.replace(x, layers=entries)

    state = jax.tree.map(layers, state, is_leaf=lambda x: isinstance(x, Cache))
    made: DecodeState = replace_changed(grow_rest_program, slots, state, drafter)
    return made


def grow_entry(entry: Any, *, slots: int, which: tuple[int, ...] | None = None) -> Any:
    """One layer's memory; of ``which`` of its leaves only those."""
    return chosen(entry.grow(slots), which)


def grow_rest(
    state: DecodeState, drafter: Drafter, *, slots: int, which: tuple[int, ...] | None = None
) -> Any:
    """The state; of ``which`` of its leaves only those."""
    return chosen(grown(drafter, state, slots), which)


def chosen(tree: Any, which: tuple[int, ...] | None) -> Any:
    """Some leaves of ``tree``; None: all of it."""
    return tree if which is None else [jax.tree.leaves(tree)[i] for i in which]


def replace_changed(program: Program, slots: int, tree: Any, *args: Any) -> Any:
    """``tree`` as ``program`` grows it; old leaves of other shapes are freed, the rest stays."""
    wanted = jax.eval_shape(functools.partial(program.function, slots=slots), tree, *args)
    leaves, structure = jax.tree.flatten(tree)
    pairs = enumerate(zip(leaves, jax.tree.leaves(wanted), strict=True))
    which = tuple(i for i, (old, new) in pairs if old.shape != new.shape)
    if not which:
        return tree
    new = jax.block_until_ready(program(tree, *args, slots=slots, which=which))
    for i, leaf in zip(which, new, strict=True):
        leaves[i].delete()
        leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


resume_program = Program(resume, static_argnames="with_details", donate_argnames="state")
mark_program = Program(mark, static_argnames="which")
grown_program = Program(grown, static_argnames="slots")
grow_entry_program = Program(grow_entry, static_argnames=("slots", "which"))
grow_rest_program = Program(grow_rest, static_argnames=("slots", "which"))
