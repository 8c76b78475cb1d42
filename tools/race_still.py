"""The race for paper and for READMEs: a strip that stands still, and a GIF that runs."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
from matplotlib import animation
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text

from specjax.lab.view.heat import ADVANCE
from specjax.lab.view.palette import Palette
from specjax.lab.view.race import check_race, verdict
from specjax.lab.view.style import box, canvas, lanes, legend_above, note, quietly, style
from specjax.lab.view.tokens import finish_time, lay_out, name_of, text_of, tokens
from specjax.trace.trace import ACCEPTED, Trace

COLUMNS, PANE_WIDTH = 50, 3.95  # of the GIF, inches


def race_strip(fast: Trace, plain: Trace, row: int = 0, *, ax: Axes | None = None) -> Axes:
    """Both races on one axis of time: each block is a cycle, as high as the tokens it committed.

    The green part are accepted guesses, the blue one is the target's own token; a flag stands where
    the last token was there. Time counts from the beginning of the generation, prefill included.

    Raises:
      ValueError: as `specjax.race` does.
    """
    check_race(fast, plain, row)
    most = max(c.committed for t in (fast, plain) for c in t.rows[row])
    with canvas(ax, (6.4, 2.6)) as (ax, palette):
        for base, trace in ((0.0, plain), (1.6, fast)):
            for c in trace.rows[row]:
                begin, size, unit = 1e3 * c.begin, 1e3 * (c.end - c.begin), 1 / most
                guessed = sum(label == ACCEPTED for label in c.labels)
                own = palette.plain if trace is plain else palette.own
                at = base
                for count, colour in ((c.committed - guessed, own), (guessed, palette.accepted)):
                    if count:
                        high, look = count * unit, {"edgecolor": palette.page, "linewidth": 0.5}
                        box(ax, (begin, at), (size, high), colour, **look)
                        at += high
            end = 1e3 * finish_time(trace, row)
            ax.plot([end, end], [base, base + 1.1], color=palette.ink, linewidth=1.4)
            count = sum(c.committed for c in trace.rows[row])
            told = f"{end:.0f} ms, {1e3 * count / end:,.0f} tokens/s"
            look = {"ha": "right", "fontsize": 8.5, "fontweight": "bold", "color": palette.ink}
            note(ax, told, (end, base + 1.12), (-4, 0), **look)
        ax.set_xlim(0, 1e3 * max(finish_time(t, row) for t in (fast, plain)) * 1.01)
        ax.set_ylim(-0.08, 3.0)
        lanes(ax, palette, [0.5, 2.1], ["plain", name_of(fast)])
        ax.set_xlabel("ms since the generation began")
        keys = [
            Patch(facecolor=palette.accepted, label="accepted guesses"),
            Patch(facecolor=palette.own, label="target's own token"),
            Patch(facecolor=palette.plain, label="plain decoding"),
        ]
        legend_above(ax, handles=keys)
    return ax


def race_gif(
    fast: Trace,
    plain: Trace,
    path: str | Path,
    row: int = 0,
    *,
    seconds: float = 8.0,
    fps: int = 12,
    lines: int = 18,
    dark: bool = False,
) -> None:
    """Writes the race as an animated GIF.

    Args:
      fast: of speculation, with times.
      plain: of plain decoding, of the same prompt.
      path: of the GIF.
      row: which row of both.
      seconds: that the replay takes, at a constant speed; the end stands two seconds longer.
      fps: frames a second.
      lines: of text that are shown.
      dark: light letters on a dark ground.

    Raises:
      ValueError: as `specjax.race` does, or for no time or no frames.
      OSError: if it cannot be written.
    """
    check_race(fast, plain, row)
    if not (seconds > 0 and fps > 0 and lines > 0 and math.isfinite(seconds)):
        raise ValueError(f"seconds={seconds}, fps={fps}, lines={lines}: all must be positive.")
    end = max(finish_time(t, row) for t in (fast, plain))
    frames = max(2, round(seconds * fps))
    # Without hinting, columns of text keep their width.
    with style(dark=dark) as palette, matplotlib.rc_context({"text.hinting": "none"}):
        figure = Figure(figsize=(PANE_WIDTH / 0.47, 0.9 + 0.19 * lines), dpi=100)
        left = figure.add_axes((0.02, 0.09, 0.47, 0.75))
        right = figure.add_axes((0.51, 0.09, 0.47, 0.75))
        panes = [
            _Pane(left, palette, fast, row, lines, name_of(fast)),
            _Pane(right, palette, plain, row, lines, "plain decoding"),
        ]
        foot = figure.text(0.02, 0.025, "", fontsize=8.5, color=palette.muted)
        writer = animation.PillowWriter(fps=fps)
        with writer.saving(figure, str(Path(path).expanduser()), 100), quietly():
            for frame in [*range(frames + 1), *[frames] * (2 * fps)]:
                now = end * frame / frames
                for pane in panes:
                    pane.draw(now)
                rate = end / seconds
                over = verdict(fast, plain, row) if frame == frames else ""
                foot.set_text(over or f"{now:.3f} s of the recorded clock, {rate:.3g}x its speed")
                writer.grab_frame()


class _Pane:
    """One side of the GIF: its text appears as its cycles end."""

    def __init__(self, ax: Axes, palette: Palette, trace: Trace, row: int, lines: int, name: str):
        shown = tokens(trace, row, rejected=False)
        prompt = text_of(trace, row).prompt
        places = lay_out([prompt, *(t.text for t in shown)], COLUMNS)
        self._ends = [t.end for t in shown]
        self._last = finish_time(trace, row)
        self._lines, self._ax, self._name = lines, ax, name
        size = 72 * PANE_WIDTH / (COLUMNS + 1) / ADVANCE  # points
        self._parts: list[list[tuple[int, Text]]] = []
        for index, runs in enumerate(places):
            token = shown[index - 1] if index else None
            guessed = token is not None and token.label == ACCEPTED
            own = token is not None and not guessed and any(c.proposed for c in trace.rows[row])
            box = None
            if guessed:
                box = {"facecolor": palette.accepted_ground, "edgecolor": "none", "pad": 0.0}
            parts = []
            for line, column, text in runs:
                if not text.strip():
                    continue
                drawn = ax.text(
                    column,
                    line + 0.78,
                    text.replace("$", r"\$"),
                    family="monospace",
                    fontsize=size,
                    fontweight="bold" if own else "normal",
                    va="baseline",
                    color=palette.own if own else palette.muted if token is None else palette.ink,
                    bbox=box,
                    clip_on=True,
                )
                parts.append((line, drawn))
            self._parts.append(parts)
        self._bottom = [max((line for line, *_ in runs), default=0) for runs in places]
        ax.set_xlim(-0.5, COLUMNS + 0.5)
        ax.set_axis_off()
        self._title = ax.text(
            0, 1.09, "", transform=ax.transAxes, fontsize=11, fontweight="bold", color=palette.ink
        )

    def draw(self, now: float) -> None:
        """The pane at a time."""
        count = sum(end <= now + 1e-9 for end in self._ends)
        bottom = max(self._bottom[: count + 1])
        first = max(0, bottom - self._lines + 1)
        for index, parts in enumerate(self._parts):
            for line, text in parts:
                text.set_visible(index <= count and first <= line < first + self._lines)
        self._ax.set_ylim(first + self._lines, first)
        clock = min(now, self._last)
        rate = count / clock if clock > 0 else 0.0
        done = f", done in {self._last:.3f} s" if now >= self._last - 1e-9 else ""
        self._title.set_text(f"{self._name}: {count} tokens, {rate:,.0f}/s{done}")
