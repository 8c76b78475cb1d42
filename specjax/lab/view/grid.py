"""Tables as cells, and the formats that they are written in: one model for every table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions
from rich.table import Table

from specjax.lab.view import escape
from specjax.lab.view.html import render

WIDE = 120  # characters of a terminal, from where all columns are shown
_WRAPPED = 20  # characters of a column that may wrap


@dataclasses.dataclass(frozen=True)
class Column:
    """What stands above a column, and how it is set."""

    name: str
    numeric: bool = False
    narrow: bool = True  # shown on a narrow terminal, too
    wraps: bool = False  # in a terminal, where room is short


@dataclasses.dataclass(frozen=True)
class Cell:
    """What stands in a table, and whether it is the best of its group."""

    text: str
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows that can be compared with one another."""

    title: str
    rows: tuple[tuple[Cell, ...], ...]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table. Columns that no row has anything for are left out."""

    columns: tuple[Column, ...]
    groups: tuple[Group, ...]

    @property
    def filled(self) -> list[int]:
        """The columns that some row has something for."""
        rows = [row for group in self.groups for row in group.rows]
        return [i for i in range(len(self.columns)) if any(row[i].text for row in rows)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """A table a group: columns alike where the console is wide enough, else wrapped."""
        wide = options.max_width >= WIDE
        kept = [i for i in self.filled if wide or self.columns[i].narrow]
        rows = [row for group in self.groups for row in group.rows]
        widths = [max(len(self.columns[i].name), *(len(row[i].text) for row in rows)) for i in kept]
        fixed = sum(w for i, w in zip(kept, widths) if not self.columns[i].wraps)
        fits = fixed + 3 * len(kept) + _WRAPPED <= options.max_width
        for group in self.groups:
            title = escape.rich(group.title) if group.title else None
            made = Table(title=title, title_justify="left", title_style="dim", box=SIMPLE_HEAD)
            for i, width in zip(kept, widths):
                column = self.columns[i]
                made.add_column(
                    column.name,
                    justify="right" if column.numeric else "left",
                    overflow="fold",
                    no_wrap=i == 0,
                    min_width=width if fits and not column.wraps else None,
                )
            for row in group.rows:
                made.add_row(*_texts(row, kept, escape.rich, "[bold]", "[/bold]"))
            yield made


def markdown(grid: Grid) -> str:
    """A table a group, the title above it."""
    kept, blocks = grid.filled, []
    for group in grid.groups:
        lines = [f"**{escape.markdown(group.title)}**\n"] if group.title else []
        lines.append(f"| {' | '.join(grid.columns[i].name for i in kept)} |")
        rules = ("---:" if grid.columns[i].numeric else "---" for i in kept)
        lines.append(f"| {' | '.join(rules)} |")
        for row in group.rows:
            lines.append(f"| {' | '.join(_texts(row, kept, escape.markdown, '**', '**'))} |")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def latex(grid: Grid) -> str:
    """A tabular with the rules of booktabs."""
    kept = grid.filled
    columns = "".join("r" if grid.columns[i].numeric else "l" for i in kept)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines.append(" & ".join(escape.tex(grid.columns[i].name) for i in kept) + r" \\")
    for group in grid.groups:
        lines.append(r"\midrule")
        if group.title:
            title = rf"\emph{{{escape.tex(group.title)}}}"
            lines.append(rf"\multicolumn{{{len(kept)}}}{{l}}{{{title}}} \\")
        for row in group.rows:
            lines.append(" & ".join(_texts(row, kept, escape.tex, r"\textbf{", "}")) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def html(grid: Grid) -> str:
    """A table element; what stands in brackets is small."""
    return render("table", kept=grid.filled, grid=grid)


def _texts(
    row: Sequence[Cell], kept: Sequence[int], escaped: Callable[[str], str], begin: str, end: str
) -> list[str]:
    """The cells of a row, escaped, the best between ``begin`` and ``end``."""
    texts = [(escaped(row[i].text), row[i].best) for i in kept]
    return [f"{begin}{text}{end}" if best else text for text, best in texts]
