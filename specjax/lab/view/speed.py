"""Speed: speedup against k, and what a batch trades between users and throughput."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from specjax.lab.records.prediction import Prediction
from specjax.lab.view.palette import MARKERS
from specjax.lab.view.style import canvas, grid, legend_above, literal
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
        ax.annotate(
            "plain decoding",
            (1, 1),
            (0, -3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
            color=palette.muted,
        )
        taus = [(p.k, p.tau) for p in points if p.tau is not None]
        if prediction is not None:
            taus = list(zip(prediction.ks, prediction.tau))
        if taus:
            ax.plot(*zip(*taus), color=palette.muted, linewidth=1, label="tau (costs nothing)")
        if prediction is not None:
            ax.plot(
                prediction.ks,
                prediction.single_alpha_speedup,
                "--",
                color=palette.rejected,
                linewidth=1.4,
                label="single alpha",
            )
            ax.plot(prediction.ks, prediction.speedup, color=palette.own, label="predicted")
        for p in points:
            if p.low is not None and p.high is not None:
                ax.plot([p.k, p.k], [p.low, p.high], color=palette.ink, linewidth=1.2, zorder=3)
        ax.plot(
            [p.k for p in points],
            [p.speedup for p in points],
            "o",
            color=palette.ink,
            zorder=4,
            label=f"measured{', 95 % interval' * any(p.low is not None for p in points)}",
        )
        best = max(points, key=lambda p: p.speedup)
        ax.plot(
            [best.k],
            [best.speedup],
            "o",
            markersize=13,
            markerfacecolor="none",
            markeredgecolor=palette.accepted,
            markeredgewidth=2,
            zorder=5,
        )
        ks = sorted({p.k for p in points} | set(prediction.ks if prediction else ()))
        ax.set_xticks(ks if len(ks) <= 12 else ks[:: -(-len(ks) // 12)])
        ax.set_xlim(ks[0] - 0.5, ks[-1] + 0.5)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("k, guesses per cycle")
        ax.set_ylabel("speedup over plain decoding")
        grid(ax, palette)
        ring = Line2D([], [], ls="", marker="o", mfc="none", mec=palette.accepted, mew=1.6, ms=8)
        ring.set_label(f"best measured: k = {best.k}, {best.speedup:.2f}x")
        legend_above(ax, handles=[*ax.get_legend_handles_labels()[0], ring], columns=3)
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
            ax.plot(
                [x.per_user for x in line],
                [x.total for x in line],
                "-" if name in drawn else "--",
                marker=MARKERS[i] if name in drawn else "o",
                markerfacecolor=colour if name in drawn else palette.page,
                color=colour,
                label=literal(name) if name in drawn else "plain decoding",
            )
            for x in line:
                ax.annotate(
                    f"{x.batch}",
                    (x.per_user, x.total),
                    (6, -9 if i % 2 else 3),
                    textcoords="offset points",
                    fontsize=7.5,
                    color=palette.muted,
                )
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
        ax.margins(0.08)
        ax.set_xlabel("tokens/s of each user")
        ax.set_ylabel("tokens/s of the whole batch")
        ax.text(
            1,
            -0.15,
            "numbers: batch size",
            transform=ax.transAxes,
            ha="right",
            va="top",
            fontsize=7.5,
            color=palette.muted,
        )
        grid(ax, palette)
        legend_above(ax, columns=3)
    return ax
