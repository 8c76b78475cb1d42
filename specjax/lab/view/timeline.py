"""The timeline: draft and verify calls on a clock, and what each cycle brought."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from specjax.lab.records.costs import Costs
from specjax.lab.view import style
from specjax.lab.view.palette import Palette
from specjax.lab.view.style import canvas
from specjax.lab.view.tokens import check_row
from specjax.trace.trace import Cycle, Trace

LANE = 0.62  # height of a block
_SEEN = 0.05  # share of a cycle from where drafting is wide enough to be seen
_DIGIT, _GAP = 0.62, 2.0  # of the font's size, and points between two numbers
_SIZES = (8.0, 7.0, 6.0)  # of the numbers, in points


def plot_timeline(
    trace: Trace,
    row: int = 0,
    *,
    costs: Costs | None = None,
    plain: Trace | None = None,
    first: int = 0,
    cycles: int = 16,
    ax: Axes | None = None,
) -> Axes:
    """The cycles of a row as blocks on a clock, drafting and verification in lanes of their own.

    A compiled loop does not tell how a cycle divides; with calibrated ``costs`` its recorded time
    is divided as they say, without them a cycle is one block. A block is filled up to the share of
    its guesses that was accepted; the number is what was committed.

    Args:
      trace: with times.
      row: which row.
      costs: calibrated for this drafter and batch.
      plain: plain decoding of the same prompt, drawn below on the same clock.
      first: the first cycle that is drawn.
      cycles: how many.
      ax: where to draw; None: a new figure.

    Raises:
      ValueError: if there is no such row or cycle, or a time is unknown.
    """
    check_row(trace, row)
    shown = trace.rows[row][first : first + cycles]
    if not shown:
        raise ValueError(
            f"first={first}, cycles={cycles}: row {row} has {len(trace.rows[row])} cycles."
        )
    if any(math.isnan(c.begin) or math.isnan(c.end) for c in shown):
        raise ValueError(f"Row {row} has cycles without times, so there is no clock to draw.")
    share = seen_share(costs, max(len(c.proposed) for c in shown))
    lanes = ["draft", "verify"] if share else ["cycle"]
    start = shown[0].begin
    with canvas(ax, (6.4, 1.5 + 0.45 * (len(lanes) + (plain is not None)))) as (ax, palette):
        last = 1e3 * (shown[-1].end - start)
        middles = []
        for c in shown:
            begin, end = 1e3 * (c.begin - start), 1e3 * (c.end - start)
            split = begin + share * (end - begin)
            if share:
                _block(ax, palette, palette.draft, 0, begin, split)
            _block(ax, palette, palette.own_ground, len(lanes) - 1, split, end)
            _accepted(ax, palette, len(lanes) - 1, split, end, c)
            middles.append((split + end) / 2)
        if plain is not None:
            lanes.append("plain")
            last = max(last, _plain_lane(ax, palette, plain, row, len(lanes) - 1, shown))
        ax.set_ylim(len(lanes) - 0.5, -0.62)
        style.lanes(ax, palette, range(len(lanes)), lanes)
        ax.set_xlim(0, last)
        _numbers(ax, palette, middles, [f"{c.committed}" for c in shown], bool(share) - LANE / 2)
        ax.set_xlabel(f"ms since cycle {first + 1} began")
        style.legend_above(ax, handles=_keys(palette, bool(share), plain is not None))
    return ax


def seen_share(costs: Costs | None, k: int) -> float:
    """`draft_share`; 0 where it is unknown, or too little for a row that would look empty."""
    share = 0.0 if costs is None or not k else draft_share(costs, k)
    return share if share >= _SEEN else 0.0


def draft_share(costs: Costs, k: int) -> float:
    """The part of a cycle's time that goes into drafting; what is neither counts as verifying.

    Where a cycle was measured to take less than its parts apart, each part did.

    Raises:
      ValueError: if ``k`` was not calibrated.
    """
    parts = costs.draft_at(k) + costs.verify_at(k)
    return costs.draft_at(k) / max(costs.total(k), parts)


def _block(ax: Axes, palette: Palette, colour: str, lane: int, begin: float, end: float) -> None:
    style.box(ax, (begin, lane - LANE / 2), (end - begin, LANE), colour, edgecolor=palette.page)


def _accepted(
    ax: Axes, palette: Palette, lane: int, begin: float, end: float, cycle: Cycle
) -> None:
    """Fills a block up to the share of its guesses that was accepted."""
    part = LANE * cycle.accepted / max(cycle.num_levels, 1)
    corner, size = (begin, lane + LANE / 2 - part), (end - begin, part)
    style.box(ax, corner, size, palette.accepted, edgecolor=palette.page, hatch="///")


def _numbers(
    ax: Axes, palette: Palette, middles: Sequence[float], texts: Sequence[str], top: float
) -> None:
    """Writes ``texts`` above the blocks, as large as they fit; those that never do are left out."""
    width = 72 * ax.bbox.width / ax.figure.dpi
    points = [width * x / ax.get_xlim()[1] for x in middles]

    def room(size: float) -> list[int]:
        """Those that do not touch the one before."""
        kept: list[int] = []
        end = -math.inf
        for i, (at, text) in enumerate(zip(points, texts)):
            half = _DIGIT * size * len(text) / 2
            if at - half >= end:
                kept.append(i)
                end = at + half + _GAP
        return kept

    size = next((s for s in _SIZES if len(room(s)) == len(texts)), _SIZES[-1])
    look = {"ha": "center", "va": "bottom", "fontsize": size, "color": palette.ink}
    for i in room(size):
        style.note(ax, texts[i], (middles[i], top), (0, 2), **look)


def _plain_lane(
    ax: Axes, palette: Palette, plain: Trace, row: int, lane: int, shown: Sequence[Cycle]
) -> float:
    """The steps of plain decoding that make the same tokens, from the same token on.

    Returns:
      When the last of them is over, in ms.
    """
    check_row(plain, row)
    wanted = range(shown[0].position, shown[-1].position + shown[-1].committed)
    steps = [c for c in plain.rows[row] if c.position in wanted and not math.isnan(c.end)]
    over = 0.0
    for c in steps:
        begin, over = (1e3 * (t - steps[0].begin) for t in (c.begin, c.end))
        look: Any = {"edgecolor": palette.page, "linewidth": 0.8}
        style.box(ax, (begin, lane - LANE / 2), (over - begin, LANE), palette.plain, **look)
    return over


def _keys(palette: Palette, drafts: bool, plain: bool) -> list[Patch]:
    what = "verify" if drafts else "cycle"
    hatch: Any = {"edgecolor": palette.page, "hatch": "///"}
    keys = [
        Patch(facecolor=palette.own_ground, label=f"{what} (number: tokens committed)"),
        Patch(facecolor=palette.accepted, label="share of guesses accepted", **hatch),
    ]
    draft = [Patch(facecolor=palette.draft, label="draft")] * drafts
    return draft + keys + [Patch(facecolor=palette.plain, label="plain step")] * plain
