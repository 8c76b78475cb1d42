"""tau against the length of the text before a cycle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from specjax.lab.view.acceptance import MOST_GROUPS
from specjax.lab.view.palette import MARKERS
from specjax.lab.view.style import canvas, grid, legend_above, literal
from specjax.trace.depth import FIRST, by_depth
from specjax.trace.trace import Trace


def plot_depth(traces: Trace | Mapping[str, Trace], *, ax: Axes | None = None) -> Axes:
    """tau of the cycles behind 0 to 255 tokens, 256 to 511, 512 to 1023, and so on.

    Vertical lines are 95 % bootstrap intervals over the requests that reached so far. Only long
    texts go on to the right, so that there the prompts are others as well: ``requests`` of
    `trace.depth.by_depth` says how many.

    Args:
      traces: a trace, or name -> trace, such as one with a draft window and one without.
      ax: where to draw; None: a new figure.

    Raises:
      ValueError: for no cycles, or more than five traces.
    """
    groups = {"": traces} if isinstance(traces, Trace) else dict(traces)
    if len(groups) > MOST_GROUPS:
        raise ValueError(
            f"{len(groups)} traces in one figure; choose {MOST_GROUPS}: {', '.join(groups)}."
        )
    found = {name: by_depth(trace, resamples=400) for name, trace in groups.items()}
    ends = sorted({depth.high for depths in found.values() for depth in depths})
    if not ends:
        raise ValueError("There are no cycles in these traces, so there is no tau to draw.")
    with canvas(ax) as (ax, palette):
        for i, (name, depths) in enumerate(found.items()):
            aside = 0.08 * (i - (len(found) - 1) / 2)
            at = [ends.index(depth.high) + aside for depth in depths]
            look: Any = {"color": palette.series[i], "marker": MARKERS[i], "label": literal(name)}
            ax.plot(at, [depth.tau for depth in depths], **look)
            for x, depth in zip(at, depths):
                if depth.interval is not None:
                    ax.plot([x, x], depth.interval, color=palette.series[i], linewidth=1)
        names = [f"<{end}" if end == FIRST else f"{end // 2}-" for end in ends]
        ax.set_xticks(range(len(ends)), names)
        ax.set_xlabel("tokens before the cycle, prompt included")
        ax.set_ylabel("tau")
        ax.set_ylim(bottom=0)
        grid(ax, palette)
        if any(groups):
            legend_above(ax, columns=2)
    return ax
