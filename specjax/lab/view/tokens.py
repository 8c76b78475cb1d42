"""The tokens of a row of a trace, in the order in which they are shown."""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from rich.cells import cell_len

from specjax.lab.view.marks import Kind
from specjax.lab.view.palette import MEANING, REJECTED
from specjax.trace.trace import ACCEPTED, BONUS, CORRECTION, Cycle, Text, Trace

# Label -> the class of its elements in HTML and SVG.
CLASSES = {ACCEPTED: "a", CORRECTION: "c", BONUS: "b", REJECTED: "r"}


@dataclasses.dataclass(frozen=True)
class Token:
    """One committed token or rejected guess, with what is known of it."""

    text: str  # the characters that it completes; "" for a special token or a part of a character
    id: int
    label: str  # ACCEPTED, CORRECTION, BONUS or REJECTED
    cycle: int  # which of the row's, from 0
    position: int  # in the text, prompt included
    guess: int = 0  # which guess of its cycle, from 1; 0: the target's own
    num_guesses: int = 0  # of its cycle
    p: float | None = None  # the target's probability; None: not recorded
    q: float | None = None  # the draft's
    rank: int | None = None  # in the target's order, 1 the likeliest
    end: float = math.nan  # when its cycle was over; seconds since the generation began


def tokens(trace: Trace, row: int, *, rejected: bool = True) -> list[Token]:
    """The new tokens of a row; rejected guesses stand before the token that took their place.

    Of a tree those are the last accepted guess's children, which that token was compared with.

    Raises:
      ValueError: if there is no such row.
    """
    check_row(trace, row)
    pieces = text_of(trace, row).pieces
    known = len(pieces) == sum(c.committed for c in trace.rows[row])
    shown: list[Token] = []
    done = 0
    for index, cycle in enumerate(trace.rows[row]):
        ids = cycle.emitted or (-1,) * cycle.committed
        own: list[Token] = []
        for i, label in enumerate(cycle.labels):
            piece = pieces[done] if known else f"⟨{ids[i]}⟩"
            token = _token(cycle, index, i, ids[i], label, piece)
            (shown if label == ACCEPTED else own).append(token)
            done += 1
        if rejected:
            shown += _rejected(cycle, index, text_of(trace, row))
        shown += own
    return shown


def _token(cycle: Cycle, index: int, i: int, token: int, label: str, piece: str) -> Token:
    detail, which = cycle.detail, cycle.right[i] if label == ACCEPTED else -1
    p, position = None if detail is None else detail.p_emitted[i], cycle.position + i
    return _made(cycle, index, which, text=piece, id=token, label=label, position=position, p=p)


def _rejected(cycle: Cycle, index: int, text: Text) -> Iterator[Token]:
    """The guesses of a cycle that were not accepted; p, q and rank are given those before."""
    shown = cycle.wrong
    if cycle.parents is not None:
        shown = tuple(i for i in shown if cycle.parents[i] == cycle.last)
    for i in shown:
        token, position = cycle.proposed[i], cycle.position + cycle.levels[i] - 1
        piece = text.guesses.get(token, f"⟨{token}⟩")
        p = None if cycle.detail is None else cycle.detail.p[i]
        own = {"text": piece, "id": token, "label": REJECTED, "position": position, "p": p}
        yield _made(cycle, index, i, **own)


def _made(cycle: Cycle, index: int, which: int, **own: Any) -> Token:
    """With what is known of guess ``which``; -1: the target's own token."""
    known = None if which < 0 else cycle.detail
    return Token(
        cycle=index,
        guess=which + 1,
        num_guesses=len(cycle.proposed),
        q=None if known is None else known.q[which],
        rank=None if known is None else known.rank[which],
        end=cycle.end,
        **own,
    )


def tooltip(token: Token) -> str:
    """What is known of a token, a line each."""
    which = f"guess {token.guess} of {token.num_guesses}" if token.guess else ""
    lines = [MEANING[token.label] + (f": {which}" if which else "")]
    lines.append(f"position {token.position} · cycle {token.cycle + 1} · token {token.id}")
    if token.p is not None:
        p = f"p {token.p:.3g} (target)"
        lines.append(p if token.q is None else f"{p} · q {token.q:.3g} (draft)")
    if token.rank:
        lines.append(f"rank {token.rank} in the target's order")
    if token.label == REJECTED and token.p is not None and token.guess > 1:
        lines.append("given the guesses before it")
    if not math.isnan(token.end):
        lines.append(f"after {token.end:.4g} s")
    if not token.text:
        lines.append("no characters of its own (special, or a part of a character)")
    return "\n".join(lines)


def check_row(trace: Trace, row: int) -> None:
    """Raises ValueError, in one line, unless ``trace`` has this row."""
    if not 0 <= row < len(trace.rows):
        raise ValueError(f"row={row}: the trace has {len(trace.rows)} rows, counted from 0.")


def text_of(trace: Trace, row: int) -> Text:
    """What the row is about, as far as it is known."""
    return trace.texts[row] if row < len(trace.texts) else Text(())


def finish_time(trace: Trace, row: int) -> float:
    """Seconds from the beginning of the generation to the row's last token; NaN if unknown."""
    cycles = trace.rows[row]
    return cycles[-1].end if cycles else math.nan


def describe(trace: Trace) -> str:
    """Drafter, guesses and rule in a few words, as far as the setup tells."""
    about = trace.about
    rule = about.rule
    return name_of(trace) + (f", rule {rule}" if rule and any(c.proposed for c in trace) else "")


def name_of(trace: Trace) -> str:
    """Drafter and guesses: "dflash, k = 4", "medusa, a tree of 63"."""
    about = trace.about
    name = (about.drafter or "").split(" (")[0]
    guesses = about.num_draft or max((len(c.proposed) for c in trace), default=0)
    if not guesses:
        return "plain decoding"
    shape = "a tree of" if about.parents else "k ="
    lossy = "" if about.lossless else f", {Kind.LOSSY}"
    return f"{name or 'speculative'}, {shape} {guesses}{lossy}"


# What would steer a terminal or a page: control characters become their pictures, and the marks
# that turn the direction of writing become replacement characters.
PICTURES = {i: 0x2400 + i for i in range(32) if chr(i) not in "\n\t"} | {0x7F: 0x2421}
_VISIBLE = PICTURES | {
    i: 0xFFFD for i in (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def visible(text: str) -> str:
    """Text without characters that are not shown but obeyed."""
    return text.translate(_VISIBLE)


Placed = tuple[int, int, str]  # line, column, a run of characters without line breaks


def lay_out(pieces: Sequence[str], width: int, *, tab: int = 4) -> list[list[Placed]]:
    """Where each piece comes to stand on a page of ``width`` columns of a fixed-width font.

    Returns:
      For each piece its runs; a line break ends a run and is not part of it.
    """
    line = column = 0
    places: list[list[Placed]] = []
    for piece in pieces:
        runs: list[Placed] = []
        start, run = column, ""
        for char in visible(piece):
            if char == "\n":
                if run:
                    runs.append((line, start, run))
                line, column, start, run = line + 1, 0, 0, ""
                continue
            text = " " * (tab - column % tab) if char == "\t" else char
            size = 0 if unicodedata.combining(char) else cell_len(text)
            if column + size > width:
                if run:
                    runs.append((line, start, run))
                line, column, start, run = line + 1, 0, 0, ""
            run, column = run + text, column + size
        if run:
            runs.append((line, start, run))
        places.append(runs)
    return places
