"""The values that travel through one speculation cycle.

Shape letters, used everywhere: B rows, T tokens fed in one call, K guesses, S cache slots,
V vocabulary, D model width, N heads, G key/value heads, H head width, L layers.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp

Array = jax.Array
T = TypeVar("T")


def static(**kwargs: Any) -> Any:
    """A dataclass field that is compiled in rather than traced. Its value must be hashable."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


def one_line(value: Any) -> str:
    """The repr of a dataclass on one line: of arrays their type and shape alone."""
    fields = (f"{f.name}={_brief(getattr(value, f.name))}" for f in dataclasses.fields(value))
    return f"{type(value).__name__}({', '.join(fields)})"


def _brief(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple) and any(hasattr(v, "dtype") for v in value):
        return f"({', '.join(map(_brief, value))})"
    return repr(value)


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def pytree(cls: type[T]) -> type[T]:
    """A frozen dataclass that is a pytree; fields made with ``static()`` are not leaves."""
    if "__repr__" not in cls.__dict__:
        cls.__repr__ = one_line  # type: ignore[method-assign]
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


# How a drafter chooses its guesses; the exactness of a rule depends on nothing else.
#   one_hot: deterministically, given the committed text.
#   sampled: drawn from q with noise that nothing else uses.
#   coupled: drawn from q with the noise that the target's token at the same position uses.
KINDS = ("one_hot", "sampled", "coupled")


# A tree of guesses: guess w, at place w + 1 of the block, follows place ``parents[w]``; place 0 is
# the pending token, and a parent comes before its children (`core.trees`).
Parents = tuple[int, ...]


@pytree
class Proposal:
    """What a drafter guessed, and the exact law it drew each guess from."""

    tokens: Array  # [B, W] int32, in the order of their places; a chain has W = K
    # [B, W, V] float32 probabilities. Row i is the law that tokens[:, i] was *actually* drawn
    # from, after every processor. None: a deterministic guess, that is a point mass.
    q: Array | None = None
    parents: Parents | None = static(default=None)  # None: a chain
    # [B] int32, in 0..K: how many of a chain's guesses are worth verifying; None: all. Whether
    # guess i is may depend on the guesses before it and on the law q[:, i], never on guess i itself
    # nor on later ones: dropping a guess for what it is would bias the text.
    wanted: Array | None = None

    def first(self, width: int) -> Proposal:
        """The first ``width`` guesses of a chain; those that a row does not want are -1."""
        tokens = self.tokens[:, :width]
        if self.wanted is not None:
            index = jnp.arange(width, dtype=jnp.int32)[None, :]
            tokens = jnp.where(index < self.wanted[:, None], tokens, -1)
        return Proposal(tokens, None if self.q is None else self.q[:, :width])


@pytree
class Verdict:
    """What verification keeps. Row b commits ``tokens[b, : num_accepted[b] + 1]``.

    A tree has M levels; a chain has as many as guesses.
    """

    tokens: Array  # [B, M + 1] int32: the accepted guesses, then one token of the target's own
    num_accepted: Array  # [B] int32, in 0..M
    # [B, M + 1] int32: the places of the block that are kept, in order, the first of them 0. None:
    # the first ones, as in every chain.
    path: Array | None = None


@pytree
class Kept:
    """What a drafter hears of the verdict, in the order of the path: a tree's looks like a chain's.

    The first ``count`` tokens were fed and are committed; what the target says after them is not
    here: it is pending, and fed in the next cycle.
    """

    tokens: Array  # [B, M + 1] int32, as they were fed: the pending one, then guesses
    count: Array  # [B] int32, how many of them are committed; 0: the row is done
    features: Array | None  # [B, M + 1, F], the tapped states of those tokens
    # [B, M + 1] int32, for a drafter that holds a tree's block of its own.
    path: Array | None = None
