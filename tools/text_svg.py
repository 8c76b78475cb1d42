"""Coloured text as an SVG: for pages that strip scripts and style sheets, such as READMEs."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from rich.cells import cell_len

from specjax.lab.view.palette import DARK, LIGHT, MEANING, MONO, SANS, variables
from specjax.lab.view.tokens import CLASSES, check_row, describe, lay_out, text_of, tokens
from specjax.trace.metrics import figures
from specjax.trace.trace import ACCEPTED, BONUS, CORRECTION, Trace

ADVANCE, LEADING, SIZE = 8.4, 21, 14  # px: a column, a line, the font
MARGIN, HEAD = 20, 66


def text_svg(trace: Trace, row: int = 0, *, width: int = 88, max_lines: int = 40) -> str:
    """The text of a row as an SVG image that follows light and dark.

    Accepted guesses have a green ground, the target's own tokens are blue, bold and underlined
    (twice where it is a bonus). Rejected guesses are left out: what was written stands in its
    place.

    Args:
      trace: the trace.
      row: which row.
      width: columns.
      max_lines: of them; the rest of the text is left out, and an ellipsis says so.

    Raises:
      ValueError: if there is no such row, or no room.
    """
    check_row(trace, row)
    if width < 20 or max_lines < 1:
        raise ValueError(f"width={width}, max_lines={max_lines}: at least 20 columns and a line.")
    shown = tokens(trace, row, rejected=False)
    places = lay_out([text_of(trace, row).prompt, *(t.text for t in shown)], width)
    last = max((run[0] for runs in places for run in runs), default=0)
    lines = min(last + 1, max_lines)
    grounds, texts = [], []
    for label, runs in zip([None, *(t.label for t in shown)], places):
        for line, column, text in runs:
            if line >= lines:
                break
            x, y = MARGIN + column * ADVANCE, HEAD + line * LEADING
            size = cell_len(text) * ADVANCE
            if label is not None:
                grounds.append(_ground(label, x, y, size))
            if text.strip():
                texts.append(_text(text, "p" if label is None else CLASSES[label], x, y, size))
    if last >= lines:
        lines += 1
        texts.append(_text("…", "p", MARGIN, HEAD + (lines - 1) * LEADING, ADVANCE))
    across, down = 2 * MARGIN + width * ADVANCE, HEAD + lines * LEADING + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across:g} {down:g}" '
        f'width="{across:g}" height="{down:g}" role="img" aria-label={quoteattr(_summary(trace))}>'
        f"<style>{_STYLE}</style>"
        f'<rect class="pg" x=".5" y=".5" width="{across - 1:g}" height="{down - 1:g}" rx="10"/>'
        f"{_head(trace)}{''.join(grounds)}{''.join(texts)}</svg>\n"
    )


_STYLE = (
    f"svg{{{variables(LIGHT)}}}@media(prefers-color-scheme:dark){{svg{{{variables(DARK)}}}}}"
    f"text{{font:{SIZE}px {MONO};fill:var(--ink);white-space:pre}}"
    f".pg{{fill:var(--page);stroke:var(--line)}}.p{{fill:var(--muted)}}"
    ".ga{fill:var(--accepted-ground)}.go{fill:var(--own-ground)}.u{fill:var(--own)}"
    ".c,.b{fill:var(--own);font-weight:700}"
    f".h{{font:600 16px {SANS}}}.k{{font:13px {SANS};fill:var(--muted)}}"
)


def _ground(label: str, x: float, y: float, size: float) -> str:
    kind = "ga" if label == ACCEPTED else "go"
    at_x = f'x="{x + 0.5:.1f}" width="{size - 1:.1f}"'
    made = f'<rect class="{kind}" {at_x} y="{y}" height="19" rx="3"/>'
    lines: dict[str, tuple[float, ...]] = {ACCEPTED: (), CORRECTION: (16.5,), BONUS: (15.0, 17.5)}
    return made + "".join(
        f'<rect class="u" {at_x} y="{y + at}" height="1.3"/>' for at in lines[label]
    )


def _text(text: str, kind: str, x: float, y: float, size: float) -> str:
    """``textLength``: whatever fixed-width font the reader has, columns stay columns."""
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y + 13.5}" textLength="{size:.1f}" '
        f'lengthAdjust="spacingAndGlyphs" xml:space="preserve">{escape(text)}</text>'
    )


def _summary(trace: Trace) -> str:
    tau = figures(trace).tau
    told = "" if tau is None else f"tau {tau:.2f} tokens per target pass"
    return ", ".join(part for part in (told, describe(trace)) if part)


def _head(trace: Trace) -> str:
    """The summary and the legend."""
    made = f'<text class="h" x="{MARGIN}" y="28">{escape(_summary(trace))}</text>'
    x = float(MARGIN)
    for label in (ACCEPTED, CORRECTION, BONUS):
        made += _ground(label, x, 39, 26) + _text("abc", CLASSES[label], x, 38, 26)
        made += f'<text class="k" x="{x + 33:.0f}" y="53">{escape(MEANING[label])}</text>'
        x += 58 + 6.6 * len(MEANING[label])
    return made
