"""Coloured text as a page: which tokens were guessed, which the target wrote itself.

The few lines of script only make the hover faster; everything is there without them. What the
tokens say is escaped, and taking the markup away gives the text exactly: marks of line breaks and
special tokens are drawn by the style sheet. Text is in <pre>: viewers of notebooks drop style
sheets, and typeset what stands between dollars elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import groupby

from specjax.lab.view.html import Page, render
from specjax.lab.view.tokens import Token, describe, text_of, tokens
from specjax.trace.metrics import figures, select
from specjax.trace.trace import Trace

MOST_ROWS = 16  # that are shown when none is named


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a trace as templates read it."""

    row: int
    category: str
    tau: float | None
    prompt: str
    cycles: Sequence[Sequence[Token]]


def row_of(trace: Trace, row: int) -> Row:
    """Raises ValueError if there is no such row."""
    shown = [list(group) for _, group in groupby(tokens(trace, row), key=lambda t: t.cycle)]
    text, cycles = text_of(trace, row), trace.rows[row]
    tau = sum(c.committed for c in cycles) / len(cycles) if cycles else None
    return Row(row, text.category, tau, text.prompt, shown)


def show(trace: Trace, row: int | None = None) -> Page:
    """The text of a trace, coloured by whose token is whose.

    Accepted guesses have a green ground, the target's own tokens are blue, bold and underlined,
    rejected guesses small, red and struck through; they can be hidden. Pointing at a token tells
    its position, cycle, probabilities (if the trace has details), rank and time.

    Args:
      trace: of `specjax.generate`, or from a file.
      row: the row to show; None: all, at most 16.

    Raises:
      ValueError: if there is no such row.
    """
    rows = range(min(len(trace.rows), MOST_ROWS)) if row is None else [row]
    body = render(
        "show",
        rows=[row_of(trace, r) for r in rows],
        left=len(trace.rows) - len(rows) if row is None else 0,
        **_figures(trace if row is None else select(trace, rows)),
    )
    return Page(body, f"specjax: {describe(trace)}")


def _figures(trace: Trace) -> dict[str, object]:
    """tau, and the counts and speeds beside it."""
    found = figures(trace)
    if found.tau is None:
        return {"tau": None, "facts": []}
    facts = [f"{found.tokens} tokens in {found.cycles} target passes"]
    if found.survival:
        curve = " ".join(f"{s:.2f}" for s in found.survival[:8] if s is not None)
        facts.append(f"survival {curve}{' …' if len(found.survival) > 8 else ''}")
    if found.tpot_ms is not None:
        facts.append(f"{1e3 / found.tpot_ms:,.0f} tokens/s a row, prefill not included")
    return {"tau": found.tau, "facts": [*facts, describe(trace)]}
