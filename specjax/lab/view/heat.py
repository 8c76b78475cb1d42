"""Where it flies and where it crawls: tau over the text, and what kind of token is guessed."""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch
from rich.cells import cell_len

from specjax.lab.view.palette import Palette
from specjax.lab.view.style import box, canvas, grid, legend_above, note, quietly
from specjax.lab.view.tokens import Placed, Token, lay_out, text_of, tokens, visible
from specjax.trace.trace import ACCEPTED, Trace

COLUMNS, MOST_LINES = 78, 60
LEADING = 1.1  # em from line to line, at least
ADVANCE = 0.602  # em that a character of DejaVu Sans Mono is wide
# Upper ends of the steps of the colour ramp, as shares of the way from 1 to k + 1.
STEPS = (0.15, 0.35, 0.55, 0.75)


def rolling_tau(trace: Trace, row: int, window: int = 5) -> list[float]:
    """For each cycle, tau over the ``window`` cycles that have it in the middle."""
    counts = [c.committed for c in trace.rows[row]]
    found = []
    for j in range(len(counts)):
        near = counts[max(0, j - window // 2) : j + (window - 1) // 2 + 1]
        found.append(sum(near) / len(near))
    return found


def plot_heat(trace: Trace, row: int = 0, *, window: int = 5, ax: Axes | None = None) -> Axes:
    """The text of a row, each token on a ground that tells the tau around it.

    Args:
      trace: the trace.
      row: which row.
      window: cycles that the rolling tau is taken over.
      ax: where to draw; None: a new figure. Up to 60 lines of 78 columns.

    Raises:
      ValueError: if there is no such row or window, or the row has no cycles.
    """
    if window < 1:
        raise ValueError(f"window={window}: at least one cycle.")
    shown = tokens(trace, row, rejected=False)
    if not shown:
        raise ValueError(f"Row {row} has no tokens to draw.")
    heat, most = rolling_tau(trace, row, window), max(c.num_levels for c in trace.rows[row])
    places = _places(trace, row)
    lines = _lines(places)
    with canvas(ax, heat_size(trace, row)) as (ax, palette):
        ax.set_xlim(0, COLUMNS)
        ax.set_ylim(lines + 0.2, -0.2)
        ax.set_axis_off()
        _ramp_legend(ax, palette, window, most)
        font: Any = {"family": "monospace", "va": "baseline", "color": palette.ink, "clip_on": True}
        font["fontsize"] = _font_size(ax, lines)
        faint = {**font, "color": palette.muted}
        for runs, token in zip(places, [None, *shown]):
            for line, column, text in runs:
                if line >= MOST_LINES:
                    break
                if token is not None:
                    colour = palette.ramp[_step(heat[token.cycle], most)]
                    look = {"edgecolor": palette.page, "linewidth": 0.4}
                    box(ax, (column, line), (cell_len(text), 1), colour, **look)
                for word in re.finditer(r"\S+", text):
                    at = column + cell_len(text[: word.start()]), line + 0.73
                    ax.text(*at, word[0].replace("$", r"\$"), **(faint if token is None else font))
    return ax


def heat_size(trace: Trace, row: int) -> tuple[float, float]:
    """Inches that the text of a row takes."""
    return (6.4, 0.75 + 0.155 * _lines(_places(trace, row)))


def _places(trace: Trace, row: int) -> list[list[Placed]]:
    """Where the line stands that the text goes on with, and each token."""
    prompt = visible(text_of(trace, row).prompt)
    begun = prompt[prompt.rfind("\n") + 1 :][-COLUMNS:]
    return lay_out([begun, *(t.text for t in tokens(trace, row, rejected=False))], COLUMNS)


def _lines(places: list[list[Placed]]) -> int:
    return min(1 + max((run[0] for runs in places for run in runs), default=0), MOST_LINES)


def _step(tau: float, most: int) -> int:
    """Which colour of the ramp."""
    share = (tau - 1) / most if most else 0.0
    return bisect.bisect_left(STEPS, share - 1e-9)


def _ramp_legend(ax: Axes, palette: Palette, window: int, most: int) -> None:
    edges = [1 + share * most for share in (0.0, *STEPS, 1.0)]
    handles = [
        Patch(facecolor=colour, label=f"{a:.1f} to {b:.1f}")
        for a, b, colour in zip(edges, edges[1:], palette.ramp)
    ]
    legend_above(ax, handles=handles if most else handles[:1], columns=5)
    legend = ax.get_legend()
    assert legend is not None
    legend.set_title(f"tau over {window} cycles", FontProperties(size=8.5))
    legend.set_alignment("left")


def _font_size(ax: Axes, lines: int) -> float:
    """Points, so that a character of matplotlib's fixed-width font is as wide as a column."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    with quietly():
        figure.draw_without_rendering()  # settles the layout
    box = ax.get_window_extent()
    wide, high = box.width / COLUMNS / ADVANCE, box.height / lines / LEADING
    return 72 / figure.dpi * min(wide, high)


CLASSES: dict[str, Callable[[str], bool]] = {
    "new line": lambda t: "\n" in t,
    "space": lambda t: t != "" and t.isspace(),
    "number": lambda t: re.fullmatch(r"\s*[\d.,]*\d[\d.,]*", t) is not None,
    "word": lambda t: re.fullmatch(r"\s*[^\W\d_]+", t) is not None,
    "name": lambda t: re.fullmatch(r"\s*\w+", t) is not None,
    "punctuation": lambda t: t.strip() != "" and not any(c.isalnum() for c in t),
    "mixed": lambda t: t != "",
    "special": lambda t: True,
}


@dataclasses.dataclass(frozen=True)
class Share:
    """How many tokens of a class the drafter had guessed."""

    name: str
    accepted: int
    tokens: int


def class_of(token: Token) -> str:
    """The first class that a token's text is of."""
    return next(name for name, is_one in CLASSES.items() if is_one(token.text))


def by_class(trace: Trace) -> list[Share]:
    """How many tokens of each class were accepted guesses, over all rows."""
    found = [t for b in range(len(trace.rows)) for t in tokens(trace, b, rejected=False)]
    shares = []
    for name in CLASSES:
        of_it = [t for t in found if class_of(t) == name]
        if of_it:
            accepted = sum(t.label == ACCEPTED for t in of_it)
            shares.append(Share(name, accepted, len(of_it)))
    return shares


def plot_classes(trace: Trace, *, ax: Axes | None = None) -> Axes:
    """What share of the tokens of each class were accepted guesses; n is their number.

    Raises:
      ValueError: if the trace has no tokens.
    """
    shares: Sequence[Share] = sorted(by_class(trace), key=lambda s: s.accepted / s.tokens)
    if not shares:
        raise ValueError("The trace has no tokens to sort into classes.")
    with canvas(ax, (6.4, 0.8 + 0.3 * len(shares))) as (ax, palette):
        values = [s.accepted / s.tokens for s in shares]
        ax.barh([s.name for s in shares], values, 0.68, color=palette.accepted)
        for i, (share, value) in enumerate(zip(shares, values)):
            told = f"{value:.2f}  (n = {share.tokens})"
            note(ax, told, (value, i), (5, 0), va="center", color=palette.ink)
        ax.set_xlim(0, 1.18)
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
        ax.tick_params(axis="y", labelcolor=palette.ink)
        ax.set_xlabel("share of the text's tokens that were accepted guesses")
        grid(ax, palette)
        ax.grid(axis="y", visible=False)
        ax.grid(axis="x")
    return ax
