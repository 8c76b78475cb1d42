"""How figures look: one set of fonts and sizes, light and dark, in print and on a page.

A figure takes its palette from the ground that it is drawn on, so that ``plt.style`` of a notebook
decides. `save` writes PNG, or SVG in which text is text and every colour follows the reader's
system.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from specjax.lab.view.palette import DARK, LIGHT, Palette, named, variables

WIDTH, HEIGHT = 6.4, 3.6  # inches
FONTS = ("Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans")


@functools.cache
def _fonts() -> list[str]:
    """Those of `FONTS` that are here; matplotlib warns of every other."""
    here = {entry.name for entry in font_manager.fontManager.ttflist}
    return [name for name in FONTS if name in here] or ["sans-serif"]


@functools.cache
def _fixed() -> dict[str, Any]:
    with resources.as_file(resources.files("specjax.lab.view") / "assets/figure.mplstyle") as path:
        read: Any = matplotlib.rc_params_from_file(path, use_default_template=False)
    return dict(read)


def settings(palette: Palette) -> Any:
    """Parameters of matplotlib, as `matplotlib.rc_context` takes them."""
    coloured = {
        palette.page: [f"{part}.facecolor" for part in ("figure", "axes", "savefig")],
        palette.line: ["grid.color"],
        palette.ink: ["text.color", "axes.labelcolor", "axes.titlecolor"],
        palette.muted: ["axes.edgecolor", "xtick.color", "ytick.color"],
    }
    colours = {key: colour for colour, keys in coloured.items() for key in keys}
    own = {"patch.edgecolor": palette.page, "font.family": _fonts()}
    return {**_fixed(), **colours, **own}


@contextmanager
def quietly() -> Iterator[None]:
    """Around drawing: generated text may hold characters that no font here has."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


@contextmanager
def style(*, dark: bool = False) -> Iterator[Palette]:
    """Figures that are made inside look like those of the report."""
    palette = DARK if dark else LIGHT
    with matplotlib.rc_context(settings(palette)):
        yield palette


def colours(ax: Axes) -> Palette:
    """The palette for the ground of ``ax``."""
    red, green, blue = to_rgb(ax.get_facecolor())
    return DARK if 0.3 * red + 0.6 * green + 0.1 * blue < 0.5 else LIGHT


@contextmanager
def canvas(
    ax: Axes | None, size: tuple[float, float] = (WIDTH, HEIGHT)
) -> Iterator[tuple[Axes, Palette]]:
    """The axes to draw on: those given, or those of a new figure of ours, which notebooks show."""
    if ax is not None:
        yield ax, colours(ax)
        return
    from matplotlib import pyplot  # only here: it keeps every figure until that is closed

    with style() as palette:
        ax = pyplot.figure(figsize=size, layout="constrained").add_subplot()
        yield ax, palette
        interactive = matplotlib.is_interactive()
    # The first figure of a notebook loads its backend, which turns this on for all that follow.
    matplotlib.interactive(interactive)


def literal(text: str) -> str:
    """Text of others as it is: no dollar begins a formula, no leading _ hides it in a legend."""
    shown = text.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def grid(ax: Axes, palette: Palette) -> None:
    """Horizontal lines behind the data."""
    ax.grid(axis="y", color=palette.line, linewidth=0.7)
    ax.set_axisbelow(True)


def note(
    ax: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **look: Any
) -> None:
    """Writes beside a point; ``offset`` in points, ``look`` as `Axes.annotate` takes it."""
    ax.annotate(text, at, offset, textcoords="offset points", **{"fontsize": 8, **look})


def lanes(ax: Axes, palette: Palette, at: Sequence[float], names: Sequence[str]) -> None:
    """Rows beside one another on one clock: named, and without an axis of their own."""
    ax.set_yticks(at, names)
    ax.tick_params(axis="y", length=0, labelcolor=palette.ink)
    ax.spines["left"].set_visible(False)


def box(
    ax: Axes, at: tuple[float, float], size: tuple[float, float], colour: str, **look: Any
) -> None:
    """A filled rectangle from its corner ``at``; ``look`` as `Rectangle` takes it."""
    ax.add_patch(Rectangle(at, *size, facecolor=colour, **look))


def legend_above(ax: Axes, *, columns: int | None = None, handles: Sequence[Any] = ()) -> None:
    """A legend over the axes, where it covers nothing."""
    found = list(handles) or ax.get_legend_handles_labels()[0]
    if not found:
        return
    figure = ax.get_figure(root=True)
    assert figure is not None
    room = 0.98 * figure.bbox.width - 0.6 * figure.dpi  # of the figure, beside the axis' labels
    for count in range(columns or min(len(found), 4), 0, -1):
        place: Any = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0.2}
        sizes: Any = {"handlelength": 1.8, "columnspacing": 1.4, "frameon": False}
        legend = ax.legend(handles=found, ncols=count, **place, **sizes)
        if legend.get_window_extent().width <= room:
            return


def to_svg(figure: Figure) -> str:
    """The figure as an SVG element that follows light and dark. It must be drawn in light colours.

    Colours of the palette become variables of the style sheet inside; text stays text.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "specjax"}), quietly():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'fill="(#[0-9a-f]{6})"', r'style="fill: \1"', text)  # of a hatch
    for name, colour in named(LIGHT).items():
        text = re.sub(rf"(?<=[:\s]){colour}\b", f"var(--{name})", text)
    theme = (
        f"<style>svg{{{variables(LIGHT)}}}"
        f"@media(prefers-color-scheme:dark){{svg{{{variables(DARK)}}}}}</style>"
    )
    end = text.index(">") + 1
    return text[:end] + theme + text[end:]


def save(figure: Figure, path: str | Path) -> None:
    """Writes by the ending: ``.svg`` themed, anything else as matplotlib does.

    Raises:
      ValueError: for an ending that matplotlib cannot write.
      OSError: if it cannot be written.
    """
    path = Path(path).expanduser()
    if path.suffix == ".svg":
        text = '<?xml version="1.0" encoding="utf-8"?>\n' + to_svg(figure)
        path.write_text(text, encoding="utf-8")
    else:
        with quietly():
            figure.savefig(path)
