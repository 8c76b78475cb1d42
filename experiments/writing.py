"""What `experiments.generate` does with one batch: decode it, show it, and record it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import specjax
from specjax.checkpoint.tokenizer import StreamDecoder
from specjax.measure.metrics import select
from specjax.view.summary import make_record
from specjax.view.text import Labeller, Painter


@dataclasses.dataclass
class Batch:
    """Prompts that are decoded together."""

    rows: range
    seconds: float = 0.0  # until the text was there, without compiling
    compile_seconds: float = 0.0
    tokens: list[list[int]] = dataclasses.field(default_factory=list)
    rule: str = ""
    trace: specjax.Trace | None = None


def generate_batch(
    batch: Batch,
    target: specjax.Model,
    spec: Any,
    painter: Painter | None,
    arguments: Mapping[str, Any],
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
    for row, prompt in enumerate(arguments["prompts"][:num]):
        if painter is not None:
            labeller = make_labeller(target)
            tokens = output.tokens[row]
            labeller.push(tokens, output.trace.labels(row)[: len(tokens)], last=True)
            painter.write_plain(prompt)
            painter.write(labeller.take(len(output.text[row])))
            painter.write_line("\n")
        yield make_record(
            prompt,
            output.text[row],
            output.tokens[row],
            output.finish[row],
            arguments["seed"][row],
            output.trace.rows[row],
        )


def stream_batch(
    batch: Batch, target: specjax.Model, spec: Any, painter: Painter, arguments: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Shows the one text of the batch as it comes."""
    labeller = make_labeller(target)
    prompt, text, finish = arguments["prompts"][0], "", None
    tokens: list[int] = []
    cycles: list[specjax.Cycle] = []
    painter.write_plain(prompt)
    begin = time.perf_counter()
    for piece in specjax.stream(target, spec, **arguments):
        labeller.push(piece.tokens, piece.labels, last=piece.finish is not None)
        painter.write(labeller.take(len(piece.text)))
        text, finish, batch.trace = text + piece.text, piece.finish, piece.trace
        tokens += piece.tokens
        cycles += piece.cycles
    batch.seconds, batch.tokens = cycles[-1].end, [tokens]
    batch.compile_seconds = time.perf_counter() - begin - batch.seconds
    painter.write_line("\n")
    yield make_record(prompt, text, tokens, finish, arguments["seed"][0], cycles)


def make_labeller(target: specjax.Model) -> Labeller:
    assert target.tokenizer is not None  # loading has looked
    return Labeller(StreamDecoder(target.tokenizer))
