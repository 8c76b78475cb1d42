"""Seeds of texts: whole numbers of 32 bits, since that is what a key of JAX is made of here."""

from __future__ import annotations

from typing import Any

from specjax.core.options import is_integer

_NUM = 2**32


def check_seed(seed: Any, name: str = "seed") -> None:
    """Raises ValueError, in one line, unless it is a whole number of 32 bits."""
    if not is_integer(seed) or not 0 <= seed < _NUM:
        raise ValueError(f"{name}={seed!r}: must be an integer from 0 to 2**32 - 1.")


def seed_of(first: int, index: int) -> int:
    """The seed of text ``index`` of a run with the seed ``first``; it goes round at the end."""
    return (first + index) % _NUM
