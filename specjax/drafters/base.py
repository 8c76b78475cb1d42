"""What a drafter is, and the laws it obeys.

A drafter is a pytree (its weights are traced, the rest is static) whose methods return new state
and change nothing. Between cycles its state has seen the committed tokens, whatever that means for
it. It obeys six laws, each a test that every registered drafter is put through:

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

from specjax.core.types import KINDS, Array, Proposal, pytree
from specjax.sampling import Counts, Sampling


@pytree
class Context:
    """What a drafter may look at when it proposes."""

    tokens: Array  # [B, S] int32, committed, left-aligned
    length: Array  # [B] int32, how many; the last one is pending
    keys: Array  # [B] the rows' keys, to be folded (core.keys), never consumed
    sampling: Sampling
    counts: Counts | None  # of the committed tokens; output [B, V]


class Drafter(Protocol):
    """A drafter. ``num_draft``, ``kind`` and ``taps`` are static."""

    @property
    def num_draft(self) -> int:
        """K, the number of guesses of a cycle."""
        ...

    @property
    def kind(self) -> str:
        """How guesses are drawn: one of `core.types.KINDS`."""
        ...

    @property
    def taps(self) -> tuple[int, ...]:
        """The target's hidden states it wants (`Decoder.hidden`); empty: none is computed."""
        ...

    def init(self, rows: int, slots: int) -> Any:
        """The state before any token, with room for ``slots`` of them."""
        ...

    def prefill(self, draft: Any, tokens: Array, count: Array, features: Array | None) -> Any:
        """Takes in the first ``count`` [B] of the prompt's next ``tokens`` [B, T]."""
        ...

    def propose(self, draft: Any, context: Context) -> tuple[Proposal, Any]:
        """Guesses K tokens. A guess of -1 is none: it is never accepted."""
        ...

    def update(
        self, draft: Any, block: Array, count: Array, length: Array, features: Array | None
    ) -> Any:
        """Hears the verdict.

        Args:
          draft: the state that ``propose`` returned.
          block: [B, K + 1], the tokens that were scored: the pending one and the guesses.
          count: [B], how many tokens were committed; 0: none, the row is done.
          length: [B], the committed length after them.
          features: [B, K + 1, F], the tapped states of the block's tokens.
        """
        ...

    def grow(self, draft: Any, slots: int) -> Any:
        """The same state with room for ``slots`` tokens."""
        ...


class Spec(Protocol):
    """What a user hands over: a drafter that does not know its target yet."""

    def bind(self, target: Any, kind: str) -> Drafter:
        """The drafter for ``target`` (a `specjax.Model`).

        ``kind`` is the kind of guesses that suits the request; a drafter that has only one way to
        guess ignores it. Raises ValueError if the two do not fit.
        """
        ...


def check_num_draft(num_draft: int) -> None:
    """Raises ValueError if K is not a positive integer."""
    if not isinstance(num_draft, int) or isinstance(num_draft, bool) or num_draft < 1:
        raise ValueError(
            f"num_draft={num_draft!r}: a drafter guesses at least 1 token a cycle; use the drafter "
            "'none' for plain decoding."
        )


def check_fits(
    name: str, target: Any, *, vocab_size: int, target_hidden_size: int, taps: tuple[int, ...]
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
        if not 0 <= tap <= theirs.num_layers:
            raise ValueError(
                f"{name} taps hidden_states[{tap}], but {target.name} has {theirs.num_layers} "
                f"layers, so hidden_states[0] to hidden_states[{theirs.num_layers}]."
            )


def check_kind(kind: str | None) -> None:
    """Raises ValueError unless ``kind`` is None or a way to draw guesses."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(KINDS)}.")
