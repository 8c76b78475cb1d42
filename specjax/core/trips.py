"""How often a loop is expected to run whose length the program decides when it runs.

A compiled program does not say. What makes such a loop writes it into the names of its operations
(`expected`), where whoever reads the program finds it (`stated`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from typing import Literal

import jax

_NAME = re.compile(r"\bexpected_(trips|tiles)_(\d+)(?:_of_(\d+)_in_(\d+))?\b")


def expected(trips: float) -> contextlib.AbstractContextManager[None]:
    """A scope whose loops are expected to run so often."""
    return jax.named_scope(f"expected_trips_{max(round(trips), 1)}")


def expected_tiles(size: int, rows: int, slots: int) -> contextlib.AbstractContextManager[None]:
    """A scope whose loop goes over tiles of ``size`` slots as far as ``rows`` texts reach.

    They have room for ``slots``.
    """
    return jax.named_scope(f"expected_tiles_{rows}_of_{size}_in_{slots}")


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
