"""Acceptance by position: how far proposals survive."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from specjax.lab.view.palette import HATCHES, MARKERS
from specjax.lab.view.style import canvas, grid, legend_above, literal
from specjax.trace.metrics import figures, select, with_intervals
from specjax.trace.trace import Trace

MOST_GROUPS = 5  # as many as there are colours


def plot_acceptance(traces: Trace | Mapping[str, Trace], *, ax: Axes | None = None) -> Axes:
    """Survival as bars, conditional acceptance as dots, by position of the guess.

    Survival at i is the share of target passes that accepted at least i guesses, the conditional
    that of those that had accepted i - 1; both before cutting at the end. The lines on the bars are
    95 % bootstrap intervals over requests, where there are two requests or more.

    Args:
      traces: a trace, drawn by category of its prompts if there are several; or name -> trace.
      ax: where to draw; None: a new figure.

    Raises:
      ValueError: if nothing was guessed, or for more than five groups.
    """
    groups = dict(traces) if isinstance(traces, Mapping) else categories(traces)
    if len(groups) > MOST_GROUPS:
        raise ValueError(
            f"{len(groups)} groups in one figure; choose {MOST_GROUPS}: {', '.join(groups)}."
        )
    found = {name: figures(trace) for name, trace in groups.items()}
    most = max((len(f.survival) for f in found.values()), default=0)
    if not most:
        raise ValueError("Nothing was guessed in these traces, so there is no acceptance to draw.")
    with canvas(ax) as (ax, palette):
        width, several = 0.8 / len(groups), len(groups) > 1
        for i, (name, trace) in enumerate(groups.items()):
            survival, conditional = found[name].survival, found[name].conditional
            at = [k + (i - (len(groups) - 1) / 2) * width for k in range(1, len(survival) + 1)]
            colour = palette.series[i] if several else palette.accepted
            heights = [math.nan if s is None else s for s in survival]
            named = f"{literal(name)}: tau {found[name].tau:.2f}" if several else "survival"
            bars: Any = {"alpha": 0.85, "hatch": HATCHES[i], "edgecolor": palette.page}
            ax.bar(at, heights, 0.92 * width, color=colour, linewidth=0, label=named, **bars)
            aside = 0.0 if several else -0.2 * width  # beside the dots
            intervals = with_intervals(trace, resamples=400).survival
            for x, ends in zip(at, intervals):
                if ends is not None:
                    ax.plot([x + aside] * 2, ends, color=palette.ink, linewidth=1, zorder=3)
            dots: Any = {"marker": MARKERS[i], "mfc": palette.page, "mew": 1.5, "linewidth": 1.2}
            dots["color"] = colour if several else palette.ink
            dots["label"] = "conditional (given the one before)" if i == 0 else "_"
            ax.plot(at, [math.nan if c is None else c for c in conditional], ":", zorder=4, **dots)
        ax.set_xlabel("position of the guess")
        ax.set_ylabel("share accepted")
        ax.set_ylim(0, 1.02)
        ax.set_xlim(0.4, most + 0.6)
        ticks = range(1, most + 1, 1 + most // 17)
        ax.set_xticks(ticks)
        if not several:
            survival = next(iter(found.values())).survival
            ax.set_xticks(ticks, [f"{k}\n{survival[k - 1]:.2f}" for k in ticks])
            ax.set_xlabel("position of the guess, and survival there")
        grid(ax, palette)
        handles = ax.get_legend_handles_labels()[0]
        legend_above(ax, handles=sorted(handles, key=lambda h: isinstance(h, Line2D)), columns=4)
    return ax


def categories(trace: Trace) -> dict[str, Trace]:
    """The trace by category of its prompts; one group, without a name, where they have none."""
    rows: dict[str, list[int]] = {}
    for b, text in enumerate(trace.texts):
        rows.setdefault(text.category, []).append(b)
    if len(rows) < 2:
        return {"": trace}
    return {name or "other": select(trace, members) for name, members in rows.items()}
