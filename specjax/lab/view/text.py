"""Text in which accepted guesses, corrections and bonus tokens look different.

On a colour terminal by colour and by style, elsewhere (a pipe, ``NO_COLOR``) by marks around the
target's own tokens. Taking the marks away gives the text exactly.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from specjax.lab.view.tokens import PICTURES, text_of
from specjax.trace.trace import ACCEPTED, BONUS, CORRECTION, Trace

Span = tuple[str, str]  # text, label

STYLES = {
    ACCEPTED: Style(color="green"),
    CORRECTION: Style(color="bright_blue", bold=True, underline=True),
    BONUS: Style(color="bright_blue", bold=True, italic=True),
}
# Pairs that program text hardly ever holds.
MARKS = {ACCEPTED: ("", ""), CORRECTION: ("«", "»"), BONUS: ("⟦", "⟧")}
MEANING = {
    ACCEPTED: "accepted draft token",
    CORRECTION: "correction",
    BONUS: "bonus token",
}


def spans(trace: Trace, row: int, length: int) -> list[Span]:
    """The first ``length`` characters of a row, by the label of the token that completes them."""
    found = []
    for text, label in zip(text_of(trace, row).pieces, trace.labels(row)):
        if text and length > 0:
            found.append((text[:length], label))
            length -= len(text)
    return found


class Painter:
    """Writes labelled text in the way that ``console`` can show."""

    def __init__(self, console: Console):
        self.console = console
        # A "dumb" terminal has no colour system; rich keeps bold under NO_COLOR, we do not.
        self.colour = (
            console.is_terminal and console.color_system is not None and not console.no_color
        )

    def write(self, spans: Iterable[Span]) -> None:
        """Writes at once, without wrapping or trimming anything."""
        self.console.file.write("".join(self.paint(text, label) for text, label in spans))
        self.console.file.flush()

    def write_plain(self, text: str) -> None:
        """Text that is not generated, such as a prompt; dim where that can be shown."""
        text = self._safe(text)
        if self.colour:
            text = Style(dim=True).render(text, color_system=ColorSystem.STANDARD)
        self.console.file.write(text)
        self.console.file.flush()

    def write_line(self, line: str) -> None:
        """A line that is painted already."""
        self.console.file.write(line + "\n")
        self.console.file.flush()

    def paint(self, text: str, label: str) -> str:
        """One span as it is written."""
        text = self._safe(text)
        if not self.colour:
            return mark(text, *MARKS[label])
        if label != ACCEPTED and text.startswith("\n"):
            text = "↵" + text  # a line break has no colour of its own
        return STYLES[label].render(text, color_system=ColorSystem.STANDARD)

    def legend(self) -> str:
        """What the looks mean, in one line."""
        parts = [self.paint(meaning, label) for label, meaning in MEANING.items()]
        return "legend: " + ", ".join(parts)

    def _safe(self, text: str) -> str:
        return text.translate(PICTURES) if self.console.is_terminal else text


def mark(text: str, begin: str, end: str) -> str:
    """Marks around ``text``, white space left outside; white space alone stands behind them."""
    body = text.strip()
    if not body or not begin:
        return begin + end + text
    start = text.index(body)
    return text[:start] + begin + body + end + text[start + len(body) :]
