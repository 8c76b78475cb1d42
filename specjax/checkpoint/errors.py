"""The one exception that loading raises."""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST = 1000  # characters of a message: names in a hostile file have any length


class CheckpointError(ValueError):
    """A checkpoint cannot be loaded. The message is one line: what, where, and what to do."""

    def __init__(self, message: str):
        line = " ".join(message.split())
        line = "".join(c if c.isprintable() else "\ufffd" for c in line)  # no escapes to a terminal
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
        super().__init__(line)


def some(names: Iterable[str], limit: int = 3) -> str:
    """``"a, b, c and 7 more"``: names for a message, in order, at most ``limit`` of them."""
    names = sorted(names)
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
