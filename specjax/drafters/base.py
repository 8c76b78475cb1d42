"""What a drafter is, and the laws it obeys.

A drafter is a pytree (its weights are traced, the rest is static) whose methods return new state
and change nothing. Between cycles its state has seen the committed tokens, whatever that means for
it. Of the guesses nothing outlives the cycle: what was computed of them is held until the verdict,
and the state takes in what was kept. It obeys six laws, each a test that every registered drafter
is put through:

1. Truth: ``Proposal.q`` is exactly the law each guess was drawn from.
2. Purity: the same inputs give the same outputs.
3. Path independence: after any cycles it proposes what a fresh ``init`` and ``prefill`` on the same
   committed tokens would make it propose. (Verification repairs what a drafter proposes, so no test
   of the text can see a state that went wrong.)
4. Row independence: a row's guesses do not depend on the other rows.
5. Stability: structure, shapes and types of its state never change.
6. Committing nothing changes nothing.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from specjax.core import trees
from specjax.core.cache import Cache
from specjax.core.types import KINDS, Array, Kept, Parents, Proposal, pytree, static
from specjax.models.config import UNNORMED
from specjax.models.target import Target
from specjax.sampling import Counts, Sampling


@pytree
class Bound:
    """The target and its memory, for drafters that draft with it: read, never written.

    The cache holds every committed token but the pending one.
    """

    net: Any  # models.Frozen
    cache: Cache


@pytree
class Context:
    """What a drafter may look at when it proposes."""

    tokens: Array  # [B, S] int32, committed, left-aligned
    length: Array  # [B] int32, how many; the last one is pending
    keys: Array  # [B] the rows' keys, to be folded (core.keys), never consumed
    sampling: Sampling
    counts: Counts | None  # of the committed tokens; output [B, V]
    target: Bound | None = None  # always there in a cycle
    done: Array | None = None  # [B] bool: rows that rest; None: none does
    likeliest: bool = static(default=False)  # see `drawing.draw`

    @property
    def pending(self) -> Array:
        """[B, 1] int32."""
        return jnp.take_along_axis(self.tokens, self.length[:, None] - 1, axis=1)


class Drafter(Protocol):
    """A drafter. ``num_draft``, ``kind`` and ``taps`` are static.

    One whose guesses form a tree also has ``parents`` (`core.types.Parents`). One that says how
    many of its guesses are worth verifying (`Proposal.wanted`) also has ``widths``: the numbers of
    guesses, ascending up to K, of which the cycle verifies the least that serves every row. One
    that can go on with another text that begins as its own also has ``cut(state, length)``, see
    `cut`; without it the next turn of a conversation is fed from its first token on. Where its
    state of a token depends on more than one token behind it, ``reads_ahead`` says on how many
    more.
    """

    @property
    def num_draft(self) -> int:
        """K, the number of guesses of a cycle; of a tree, W."""
        ...

    @property
    def kind(self) -> str:
        """How guesses are drawn: one of `core.types.KINDS`."""
        ...

    @property
    def taps(self) -> tuple[int, ...]:
        """The target's hidden states it wants (`Decoder`); empty: none is computed."""
        ...

    def init(self, rows: int, slots: int) -> Any:
        """The state before any token, with room for ``slots`` of them."""
        ...

    def prefill(self, state: Any, tokens: Array, count: Array, features: Array | None) -> Any:
        """Takes in the first ``count`` [B] of the prompt's next ``tokens`` [B, T]."""
        ...

    def propose(self, state: Any, context: Context) -> tuple[Proposal, Any]:
        """Guesses, and whatever ``update`` needs: the state, and what was computed of the guesses.

        A guess of -1 is none: it is never accepted.
        """
        ...

    def update(self, held: Any, kept: Kept) -> Any:
        """Hears what is committed of the cycle, and returns the new state.

        ``held`` is what ``propose`` returned; see `core.types.Kept`.
        """
        ...

    def grow(self, state: Any, slots: int) -> Any:
        """The same state with room for ``slots`` tokens."""
        ...


def can_cut(drafter: Any, state: Any) -> bool:
    """Whether `cut` knows how: the drafter says it, or there is no state."""
    return hasattr(drafter, "cut") or not jax.tree.leaves(state)


def cut(drafter: Any, state: Any, length: Array) -> Any:
    """The state for another text, of which ``length`` [B] tokens are known from the last one.

    The state is as if no more than those had been prefilled: `prefill` follows, with at least one
    more token in every row, and the first of those is one that the old text had at its place.
    The next `reads_ahead` tokens are those of the old text, too. Where a cache of the state knows
    fewer, its length says so, and `cut` is asked for so many.
    """
    return drafter.cut(state, length) if hasattr(drafter, "cut") else state


def reads_ahead(drafter: Any) -> int:
    """How many tokens behind the next one its state of a token depends on."""
    count: int = getattr(drafter, "reads_ahead", 0)
    return count


def parents_of(drafter: Any) -> Parents | None:
    """The tree that its guesses form; None: a chain."""
    return getattr(drafter, "parents", None)


def num_levels(drafter: Any) -> int:
    """M, the most guesses that one cycle can accept: K for a chain."""
    parents = parents_of(drafter)
    return drafter.num_draft if parents is None else trees.num_levels(parents)


def widths_of(drafter: Any) -> tuple[int, ...]:
    """The numbers of guesses that are verified at once; K alone where a drafter does not say."""
    return getattr(drafter, "widths", None) or (drafter.num_draft,)


def doubling_widths(num_draft: int) -> tuple[int, ...]:
    """0, 1, 2, 4, .. and K: programs for as few guesses as that."""
    powers = [2**i for i in range(num_draft.bit_length()) if 2**i < num_draft]
    return (0, *powers, num_draft)


def check_min_confidence(value: float | None) -> None:
    """Raises ValueError unless it is None or a probability."""
    if value is not None and not (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
    ):
        raise ValueError(
            f"min_confidence={value!r}: must be in (0, 1], or None to verify every guess."
        )


def check_num_draft(num_draft: int) -> None:
    """Raises ValueError if K is not a positive integer."""
    if not isinstance(num_draft, int) or isinstance(num_draft, bool) or num_draft < 1:
        raise ValueError(
            f"num_draft={num_draft!r}: a drafter guesses at least 1 token a cycle; use the drafter "
            "'none' for plain decoding."
        )


def check_fits(
    name: str, target: Target, *, vocab_size: int, target_hidden_size: int, taps: tuple[int, ...]
) -> None:
    """What every drafter that taps its target asks of it. Raises ValueError."""
    theirs = target.config
    if vocab_size != theirs.vocab_size:
        raise ValueError(
            f"{name} was made for a vocabulary of {vocab_size} tokens, but {target.name} has "
            f"{theirs.vocab_size}: it belongs to another target."
        )
    if target_hidden_size != theirs.hidden_size:
        raise ValueError(
            f"{name} taps states of width {target_hidden_size}, but those of {target.name} have "
            f"width {theirs.hidden_size}: it belongs to another target."
        )
    for tap in taps:
        if tap != UNNORMED and not 0 <= tap <= theirs.num_layers:
            raise ValueError(
                f"{name} taps hidden_states[{tap}], but {target.name} has {theirs.num_layers} "
                f"layers, so hidden_states[0] to hidden_states[{theirs.num_layers}]."
            )


def check_kind(kind: str | None) -> None:
    """Raises ValueError unless ``kind`` is None or a way to draw guesses."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(KINDS)}.")
