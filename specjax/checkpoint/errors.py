"""The one exception that loading raises."""

from __future__ import annotations

from collections.abc import Iterable


class CheckpointError(ValueError):
    """A checkpoint cannot be loaded. The message is one line: what, where, and what to do."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def some(names: Iterable[str], limit: int = 3) -> str:
    """``"a, b, c and 7 more"``: names for a message, in order, at most ``limit`` of them."""
    names = sorted(names)
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
