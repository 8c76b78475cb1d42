"""Tables in a terminal without lines: words in the first columns, numbers in the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> Table:
    """``words``: how many columns, from the left, are no numbers."""
    made = Table(*header, box=None)
    for column in made.columns[words:]:
        column.justify = "right"
    for row in rows:
        made.add_row(*row)
    return made
