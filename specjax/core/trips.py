"""How often a loop is expected to run whose length the program decides when it runs.

A compiled program does not say, nor what a kernel of our own reads of its operands. What makes such
a loop or kernel writes it into the names of its operations (`expected`, `reads_valid_slots`), where
whoever reads the program finds it (`stated`, `share_read`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from typing import Literal

import jax

_NAME = re.compile(r"\bexpected_(trips|tiles)_(\d+)(?:_of_(\d+)_in_(\d+))?\b")
_VALID = re.compile(r"\bvalid_of_(\d+)_slots_in_(\d+)_operands_from_(\d+)\b")

_UPDATES = re.compile(r"\b(updates_of|fills)_\d+_buffers(?:_with_(\d+)_tokens)?\b")
_MULTIPLIES = "rows_by_matrix"


def expected(trips: float) -> contextlib.AbstractContextManager[None]:
    """A scope whose loops are expected to run so often."""
    return jax.named_scope(f"expected_trips_{max(round(trips), 1)}")


def expected_tiles(size: int, rows: int, slots: int) -> contextlib.AbstractContextManager[None]:
    """A scope whose loop goes over tiles of ``size`` slots as far as ``rows`` texts reach.

    They have room for ``slots``.
    """
    return jax.named_scope(f"expected_tiles_{rows}_of_{size}_in_{slots}")


def reads_valid_slots(
    slots: int, first: int, count: int
) -> contextlib.AbstractContextManager[None]:
    """A scope whose kernel reads ``count`` operands, from ``first`` on, as far as texts reach.

    They have room for ``slots``.
    """
    return jax.named_scope(f"valid_of_{slots}_slots_in_{count}_operands_from_{first}")


def share_read(op_name: str, operand: int, context: int | None = None) -> float:
    """The share of an operand that a kernel reads, by the name of the operation; 1: all of it.

    ``context`` as of `stated`.
    """
    found = _VALID.findall(op_name)
    if not found:
        return 1.0
    slots, count, first = map(int, found[-1])
    inside = first <= operand < first + count
    return 1.0 if context is None or not inside else min(context, slots) / slots


def updates(count: int) -> contextlib.AbstractContextManager[None]:
    """A scope whose kernel puts each of its first ``count`` operands into a buffer, a result each.

    Of the buffers, which it updates in place, it reads nothing.
    """
    return jax.named_scope(f"updates_of_{count}_buffers")


def fills(count: int, tokens: int) -> contextlib.AbstractContextManager[None]:
    """A scope whose kernel puts so many tokens into each of so many buffers [B, G, S, H].

    Of the buffers, which it updates in place, it reads nothing.
    """
    return jax.named_scope(f"fills_{count}_buffers_with_{tokens}_tokens")


def tokens_filled(op_name: str) -> int | None:
    """How many tokens such a kernel puts into each buffer; None: it is no such kernel."""
    found = _UPDATES.search(op_name)
    return None if found is None or found[2] is None else int(found[2])


def only_updates(op_name: str) -> bool:
    """Whether an operation of that name is a kernel of one of these two kinds."""
    return bool(_UPDATES.search(op_name))


def operand_a_buffer(op_name: str) -> bool:
    """Whether it is one of the first kind."""
    found = _UPDATES.search(op_name)
    return found is not None and found[1] == "updates_of"


def multiplies() -> contextlib.AbstractContextManager[None]:
    """A scope whose kernel multiplies its first operand [M, I] by its second [O, I]."""
    return jax.named_scope(_MULTIPLIES)


def is_product(op_name: str) -> bool:
    """Whether an operation of that name is such a kernel."""
    return _MULTIPLIES in op_name


def reads_in_part(op_name: str) -> bool:
    """Whether an operation of that name is a kernel that reads as far as texts reach."""
    return bool(_VALID.search(op_name))


@dataclasses.dataclass(frozen=True)
class Stated:
    """What a program says of a loop."""

    trips: int
    why: Literal["experts", "context"]  # what they were reckoned from


def stated(op_name: str, context: int | None = None) -> Stated | None:
    """What the innermost scope around an operation, by its name, says; None: nothing.

    ``context`` is how many tokens are in the cache of every row; None: as many as there is room.
    """
    found = _NAME.findall(op_name)
    if not found:
        return None
    kind, count, size, slots = found[-1]
    if kind == "trips":
        return Stated(int(count), "experts")
    reach = int(slots) if context is None else min(context, int(slots))
    return Stated(int(count) * -(-reach // int(size)), "context")


def expected_share(share: float, tokens: int) -> float:
    """Of a weight of which a token uses ``share``, what so many use if each draws for itself."""
    return 1.0 - (1.0 - share) ** tokens


def expected_groups(share: float, tokens: int, size: int) -> float:
    """Groups of at most ``size`` that those tokens fall into which draw one expert."""
    if share >= 1:
        return float(-(-tokens // size))
    log = lambda n: math.lgamma(n + 1)  # of its factorial
    chance = lambda n: math.exp(  # that n draw it
        log(tokens)
        - log(n)
        - log(tokens - n)
        + n * math.log(share)
        + (tokens - n) * math.log1p(-share)
    )
    return sum(-(-n // size) * chance(n) for n in range(1, tokens + 1))
