"""Speed: speedup against k, and what a batch trades between users and throughput."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from specjax.lab.records.prediction import Prediction
from specjax.lab.view.palette import MARKERS
from specjax.lab.view.style import canvas, grid, legend_above, literal, note
from specjax.trace.metrics import compare, figures
from specjax.trace.trace import Trace


@dataclasses.dataclass(frozen=True)
class Point:
    """What was measured at one k."""

    k: int
    speedup: float
    low: float | None = None  # of the 95 % interval
    high: float | None = None
    tau: float | None = None


def points_of(runs: Mapping[int, Trace], plain: Trace) -> list[Point]:
    """The speedup of each k over plain decoding of the same prompts.

    Raises:
      ValueError: where traces are not comparable, or lack times.
    """
    points = []
    for k, trace in sorted(runs.items()):
        found = compare(trace, plain)
        if found.speedup is None:
            raise ValueError(f"The trace of k={k}, or that of plain decoding, has no times.")
        low, high = found.speedup_interval or (None, None)
        points.append(Point(k, found.speedup, low, high, figures(trace).tau))
    return points


def plot_speedup(
    runs: Mapping[int, Trace] | Sequence[Point],
    plain: Trace | None = None,
    *,
    prediction: Prediction | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Speedup over plain decoding against k, the guesses of a cycle.

    Points are measured, with 95 % intervals over requests; the solid line is what the survival
    curve and the calibrated costs predict, the dashed one what the single-alpha formula would have
    said with the same costs; the thin line is tau, which speed would be if drafting and verifying
    cost nothing. The best measured k is marked.

    Args:
      runs: k -> trace, or points.
      plain: the trace of plain decoding that traces are compared with.
      prediction: of `specjax.lab.costs.predict`.
      ax: where to draw; None: a new figure.

    Raises:
      ValueError: for no points, or traces without ``plain``.
    """
    points = _points(runs, plain)
    with canvas(ax) as (ax, palette):
        ax.axhline(1, color=palette.muted, linewidth=1)
        right: Any = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "top"}
        note(ax, "plain decoding", (1, 1), (0, -3), color=palette.muted, **right)
        taus = [(p.k, p.tau) for p in points if p.tau is not None]
        if prediction is not None:
            taus = list(zip(prediction.ks, prediction.tau))
        if taus:
            ax.plot(*zip(*taus), color=palette.muted, linewidth=1, label="tau (costs nothing)")
        if prediction is not None:
            alone, look = prediction.single_alpha_speedup, dict[str, Any](color=palette.rejected)
            ax.plot(prediction.ks, alone, "--", linewidth=1.4, label="single alpha", **look)
            ax.plot(prediction.ks, prediction.speedup, color=palette.own, label="predicted")
        for p in points:
            if p.low is not None and p.high is not None:
                ax.plot([p.k, p.k], [p.low, p.high], color=palette.ink, linewidth=1.2, zorder=3)
        measured = f"measured{', 95 % interval' * any(p.low is not None for p in points)}"
        at = [p.k for p in points], [p.speedup for p in points]
        ax.plot(*at, "o", color=palette.ink, zorder=4, label=measured)
        best = max(points, key=lambda p: p.speedup)
        ring: Any = {"ls": "", "marker": "o", "mfc": "none", "mec": palette.accepted}
        ax.plot([best.k], [best.speedup], ms=13, mew=2, zorder=5, **ring)
        ks = sorted({p.k for p in points} | set(prediction.ks if prediction else ()))
        ax.set_xticks(ks if len(ks) <= 12 else ks[:: -(-len(ks) // 12)])
        ax.set_xlim(ks[0] - 0.5, ks[-1] + 0.5)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("k, guesses per cycle")
        ax.set_ylabel("speedup over plain decoding")
        grid(ax, palette)
        named = f"best measured: k = {best.k}, {best.speedup:.2f}x"
        key = Line2D([], [], mew=1.6, ms=8, label=named, **ring)
        legend_above(ax, handles=[*ax.get_legend_handles_labels()[0], key], columns=3)
    return ax


def _points(runs: Mapping[int, Trace] | Sequence[Point], plain: Trace | None) -> list[Point]:
    if not runs:
        raise ValueError("No runs, so there is no speedup to draw.")
    if not isinstance(runs, Mapping):
        return sorted(runs, key=lambda p: p.k)
    if plain is None:
        raise ValueError("A speedup needs the trace of plain decoding: plot_speedup(runs, plain).")
    return points_of(runs, plain)


@dataclasses.dataclass(frozen=True)
class Load:
    """One way to serve: tokens per second of one user, and of all of them."""

    name: str  # the series: a drafter and its k, or "plain"
    batch: int
    per_user: float

    @property
    def total(self) -> float:
        return self.batch * self.per_user


def plot_frontier(loads: Sequence[Load], *, ax: Axes | None = None) -> Axes:
    """Total tokens per second against tokens per second of each user.

    Up and to the right is better; a line joins the batch sizes of one setting, plain decoding is
    dashed.

    Raises:
      ValueError: for nothing to draw, or more than five settings besides plain decoding.
    """
    names = list(dict.fromkeys(x.name for x in loads))
    drawn = [name for name in names if name != "plain"]
    if not names:
        raise ValueError("No measured speeds, so there is no frontier to draw.")
    if len(drawn) > len(MARKERS):
        raise ValueError(f"{len(drawn)} settings in one figure; choose {len(MARKERS)}.")
    with canvas(ax) as (ax, palette):
        for name in names:
            line = sorted((x for x in loads if x.name == name), key=lambda x: x.batch)
            i = drawn.index(name) if name in drawn else 0
            colour = palette.series[i] if name in drawn else palette.plain
            own: Any = {"ls": "--", "marker": "o", "mfc": palette.page, "label": "plain decoding"}
            if name in drawn:
                own = {"ls": "-", "marker": MARKERS[i], "mfc": colour, "label": literal(name)}
            ax.plot([x.per_user for x in line], [x.total for x in line], color=colour, **own)
            small: Any = {"fontsize": 7.5, "color": palette.muted}
            for x in line:
                note(ax, f"{x.batch}", (x.per_user, x.total), (6, -9 if i % 2 else 3), **small)
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
        ax.margins(0.08)
        ax.set_xlabel("tokens/s of each user")
        ax.set_ylabel("tokens/s of the whole batch")
        below: Any = {"xycoords": "axes fraction", "ha": "right", "va": "top", **small}
        note(ax, "numbers: batch size", (1, -0.15), (0, 0), **below)
        grid(ax, palette)
        legend_above(ax, columns=3)
    return ax
