"""What `generate` does with one batch: decode it, show it, and record it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

import specjax
from specjax.jobs.asking import Asked
from specjax.jobs.interrupts import Interrupt
from specjax.lab.view.summary import make_record
from specjax.lab.view.text import Painter, spans
from specjax.trace.metrics import select


@dataclasses.dataclass
class Batch:
    """Prompts that are decoded together, or in turn."""

    rows: range
    seconds: float = 0.0  # until the text was there, without compiling
    compile_seconds: float = 0.0
    tokens: list[list[int]] = dataclasses.field(default_factory=list)
    rule: str = ""
    trace: specjax.Trace | None = None
    at_once: int = 0  # of them are decoded together, and others move in where one ends; 0: all
    occupancy: float | None = None  # of rows that change hands

    @property
    def some(self) -> range:
        """Those that are decoded again to compare: as many as are decoded together."""
        return self.rows[: self.at_once or len(self.rows)]


def generate_batch(
    batch: Batch,
    target: specjax.Model,
    spec: Any,
    painter: Painter | None,
    arguments: Mapping[str, Any],
    asked: Sequence[Asked],
    size: int,
) -> Iterator[dict[str, Any]]:
    """Decodes the batch in ``size`` rows, then shows each text where there is a ``painter``."""
    # The last batch is filled up: another number of rows would be compiled anew.
    num, arguments = len(batch.rows), dict(arguments)
    for name in ("prompts", "seed"):
        arguments[name] = arguments[name] + arguments[name][-1:] * (size - num)
    output = specjax.generate(target, spec, **arguments)
    batch.seconds, batch.compile_seconds = output.seconds, output.compile_seconds
    batch.rule = output.rule
    batch.tokens = output.tokens[:num]
    real = select(output.trace, range(num))
    batch.trace = dataclasses.replace(real, setup=output.trace.setup)
    for row, one in enumerate(asked):
        if painter is not None:
            painter.write_plain(one.text(target))
            painter.write(spans(output.trace, row, len(output.text[row])))
            painter.write_line("\n")
        yield make_record(
            one.record,
            output.text[row],
            output.tokens[row],
            output.finish[row],
            arguments["seed"][row],
            output.trace.rows[row],
        )


def generate_in_turn(
    batch: Batch,
    target: specjax.Model,
    spec: Any,
    painter: Painter | None,
    arguments: Mapping[str, Any],
    asked: Sequence[Asked],
    size: int,
) -> Iterator[dict[str, Any]]:
    """Decodes the prompts ``size`` at a time, and shows each text where there is a ``painter``."""
    turns = specjax.generate_each(target, spec, batch_size=size, **arguments)
    answers = []
    for one, answer in zip(asked, turns, strict=True):
        if painter is not None:
            painter.write_plain(one.text(target))
            painter.write(spans(answer.trace, 0, len(answer.text)))
            painter.write_line("\n")
        answers.append(answer)
        batch.tokens.append(answer.tokens)
        batch.seconds, batch.compile_seconds = turns.seconds, turns.compile_seconds
        yield make_record(
            *(one.record, answer.text, answer.tokens, answer.finish),
            arguments["seed"][answer.index],
            answer.trace.rows[0],
        )
    batch.rule, batch.trace = turns.rule, turns.joined(answers)
    batch.occupancy = turns.occupancy


def stream_batch(
    batch: Batch,
    target: specjax.Model,
    spec: Any,
    painter: Painter,
    arguments: Mapping[str, Any],
    asked: Asked,
    interrupt: Interrupt,
) -> Iterator[dict[str, Any]]:
    """Shows the one text of the batch as it comes, until it ends or ``interrupt`` was noted.

    The record of an interrupted text has finish None; there is none before its first cycle.
    """
    painter.write_plain(asked.text(target))
    begin = time.perf_counter()
    said = show_stream(specjax.stream(target, spec, **arguments), painter, interrupt)
    batch.trace = said.trace
    painter.write_line("\n")
    if not said.cycles:
        return
    batch.seconds, batch.tokens = said.cycles[-1].end, [said.tokens]
    batch.compile_seconds = time.perf_counter() - begin - batch.seconds
    yield make_record(
        asked.record, said.text, said.tokens, said.finish, arguments["seed"][0], said.cycles
    )


@dataclasses.dataclass
class Said:
    """One text, as far as it came."""

    text: str = ""
    tokens: list[int] = dataclasses.field(default_factory=list)
    cycles: list[specjax.Cycle] = dataclasses.field(default_factory=list)
    finish: str | None = None  # None: interrupted
    trace: specjax.Trace | None = None  # of a whole text


def show_stream(pieces: Iterable[specjax.Piece], painter: Painter, interrupt: Interrupt) -> Said:
    """Shows one text as it comes, until it ends or ``interrupt`` was noted."""
    said = Said()
    for piece in pieces:
        painter.write(piece.spans)
        said.text, said.finish, said.trace = said.text + piece.text, piece.finish, piece.trace
        said.tokens += piece.tokens
        said.cycles += piece.cycles
        if interrupt.noted:
            break
    return said


def open_console() -> Console:
    """Standard output. A character that its encoding lacks does not end the run."""
    console = Console(highlight=False)
    with contextlib.suppress(AttributeError):
        console.file.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    return console
