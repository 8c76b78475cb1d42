"""Text of others in a table, a document or a spreadsheet: shown as it is, and never obeyed.

Names of drafters, sets and categories come from files and command lines. Each writer passes what it
was given through one of these.
"""

from __future__ import annotations

import re
from typing import Any

from rich.markup import escape as rich_escape

_MARKDOWN = re.compile(r"[\\`*_|<~&$]|\](?=[(\[:])")  # the last: of a link
_TEX = {
    **{c: "\\" + c for c in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
}
# What a spreadsheet takes for the beginning of a formula, and what it skips before one.
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")


def one_line(text: str) -> str:
    """Without line breaks and control characters, which would end a cell or steer a terminal."""
    spaced = " ".join(text.split())
    return "".join(c if c.isprintable() else "\ufffd" for c in spaced)


def markdown(text: str) -> str:
    """Escapes text for a cell or paragraph of Markdown. HTML in it stays text."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(text))


def tex(text: str) -> str:
    """Escapes text for LaTeX."""
    return "".join(_TEX.get(c, c) for c in one_line(text))


def rich(text: str) -> str:
    """Escapes text for a rich console that reads markup."""
    return rich_escape(one_line(text))


def csv_cell(value: Any) -> Any:
    """A cell that no spreadsheet runs: text like a formula gets an apostrophe; numbers stay."""
    if isinstance(value, str) and _FORMULA.match(value):
        return f"'{value}"
    return value
