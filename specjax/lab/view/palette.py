"""The colours of every picture, page and terminal: one palette, in a light and a dark version.

Chosen so that any two marks stay apart for deuteranopes and protanopes, and text on every ground
keeps a contrast of 4.5 (tests/test_colours.py computes both). Nothing is told by colour alone all
the same: guesses that were rejected are struck through, the target's own tokens are bold and
underlined, series of a figure have markers and hatches of their own.
"""

from __future__ import annotations

import dataclasses

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


LIGHT = Palette(
    page="#ffffff",
    panel="#f6f8fa",
    ink="#1c2128",
    muted="#59636e",
    line="#d5dbe2",
    accepted="#118a55",
    own="#1d4fb8",
    rejected="#b3261e",
    draft="#b87d00",
    plain="#7d8590",
    accepted_ground="#c9efd6",
    own_ground="#d8e4ff",
    warning_ground="#fff3d1",
    series=("#1e50b9", "#d1600a", "#128b56", "#a8559c", "#2f3640"),
    ramp=("#f6f3e8", "#d4e6d1", "#aed8c1", "#82c5aa", "#57b195"),
)
DARK = Palette(
    page="#0f1318",
    panel="#171c23",
    ink="#e6e9ee",
    muted="#9aa4b1",
    line="#303945",
    accepted="#62dba4",
    own="#6ea4fb",
    rejected="#f2566a",
    draft="#f0b64a",
    plain="#808a96",
    accepted_ground="#123f2a",
    own_ground="#1d3666",
    warning_ground="#3d3010",
    series=("#5b8def", "#f0883e", "#5fd8a0", "#d98fd0", "#e0e3e8"),
    ramp=("#1a1f27", "#16332f", "#17493f", "#1b5f50", "#207562"),
)
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
