"""The colours of every picture, page and terminal: one palette, in a light and a dark version.

Chosen so that any two marks stay apart for deuteranopes and protanopes, and text on every ground
keeps a contrast of 4.5 (tests/test_colours.py computes both). Nothing is told by colour alone all
the same: guesses that were rejected are struck through, the target's own tokens are bold and
underlined, series of a figure have markers and hatches of their own.
"""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from typing import Any

from specjax.trace.trace import ACCEPTED, BONUS, CORRECTION

REJECTED = "rejected"  # besides the labels of committed tokens

# What a token's look means, in every legend.
MEANING = {
    ACCEPTED: "accepted guess",
    CORRECTION: "target's own token (correction)",
    BONUS: "target's own token (bonus)",
    REJECTED: "rejected guess",
}


@dataclasses.dataclass(frozen=True)
class Palette:
    """Colours as #rrggbb."""

    page: str
    panel: str  # a card on the page
    ink: str
    muted: str  # captions, axes
    line: str  # rules and grids
    accepted: str
    own: str  # the target's own tokens
    rejected: str
    draft: str  # drafting; verification has the colour of the target's tokens
    plain: str  # plain decoding
    accepted_ground: str  # behind text
    own_ground: str
    warning_ground: str
    series: tuple[str, ...]  # methods or groups of a figure, in this order
    ramp: tuple[str, ...]  # from slow to fast, behind text


def _read(ground: str) -> Palette:
    text = (resources.files("specjax.lab.view") / "assets/palette.json").read_text()
    found: dict[str, Any] = json.loads(text)[ground]
    several: Any = {name: tuple(found.pop(name)) for name in ("series", "ramp")}
    return Palette(**found, **several)


LIGHT, DARK = _read("light"), _read("dark")
MARKERS = ("o", "s", "^", "D", "v")  # of `Palette.series`
HATCHES = ("", "///", "...", "\\\\\\", "xx")

SANS = (
    'ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, '
    '"Liberation Sans", sans-serif'
)
MONO = 'ui-monospace, "SF Mono", SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace'


def named(palette: Palette) -> dict[str, str]:
    """Name -> colour, the members of a sequence numbered: "series-0". No two colours are equal
    within LIGHT, so that one can be exchanged for its name."""
    flat: dict[str, str] = {}
    for field in dataclasses.fields(palette):
        entry = getattr(palette, field.name)
        name = field.name.replace("_", "-")
        if isinstance(entry, str):
            flat[name] = entry
        else:
            flat |= {f"{name}-{i}": colour for i, colour in enumerate(entry)}
    return flat


def variables(palette: Palette) -> str:
    """CSS custom properties: "--page:#ffffff;..."."""
    return "".join(f"--{name}:{colour};" for name, colour in named(palette).items())


def css(selector: str) -> str:
    """Fonts and colours of ``selector``, as the reader's system or a notebook's theme has them."""
    dark = ('[data-jp-theme-light="false"]', ".vscode-dark", "html[theme=dark]")
    light = ('[data-jp-theme-light="true"]', ".vscode-light", "html[theme=light]")
    return (
        f"{selector}{{--sans:{SANS};--mono:{MONO};color-scheme:light;{variables(LIGHT)}}}"
        f"@media (prefers-color-scheme:dark){{{selector}{{color-scheme:dark;{variables(DARK)}}}}}"
        + ",".join(f"{theme} {selector}" for theme in light)
        + f"{{color-scheme:light;{variables(LIGHT)}}}"
        + ",".join(f"{theme} {selector}" for theme in dark)
        + f"{{color-scheme:dark;{variables(DARK)}}}"
    )
