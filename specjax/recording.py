"""What the host adds to a trace, so that pictures need neither model nor tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from specjax.core import machine
from specjax.drafters.base import parents_of, widths_of
from specjax.drafters.family import family_of
from specjax.session import Row, Session
from specjax.text import Reading, token_text
from specjax.trace.trace import Cycle, Text, Trace


def complete(
    trace: Trace,
    session: Session,
    rows: Sequence[Row],
    finish: Sequence[str | None],
    readings: Sequence[Reading],
) -> Trace:
    """The trace of ``session`` with what its rows are about and say, why they ended, its setup."""
    texts = [
        describe_row(session, *row) for row in zip(rows, finish, trace.rows, readings, strict=True)
    ]
    return dataclasses.replace(trace, texts=tuple(texts), setup=describe_setup(session, rows))


def complete_row(
    cycles: Sequence[Cycle],
    session: Session,
    rows: Sequence[Row],
    index: int,
    finish: str,
    reading: Reading,
) -> Trace:
    """Completes the trace of row ``index`` alone, whose cycles are ``cycles``."""
    text = describe_row(session, rows[index], finish, cycles, reading)
    return Trace((tuple(cycles),), (text,), describe_setup(session, rows))


def describe_row(
    session: Session, row: Row, finish: str | None, cycles: Sequence[Cycle], reading: Reading
) -> Text:
    """The prompt and, token by token, the text of one row, which was read to its end."""
    tokenizer, prompt = session.target.tokenizer, list(row.prompt)
    guesses: dict[int, str] = {}
    if tokenizer is not None:
        rejected = (cycle.proposed[i] for cycle in cycles for i in cycle.wrong)
        guesses = {token: token_text(tokenizer, prompt, token) for token in dict.fromkeys(rejected)}
    return Text(
        prompt_tokens=tuple(prompt),
        seed=int(row.seed),
        finish=finish,
        prompt="" if tokenizer is None else tokenizer.decode(prompt),
        pieces=reading.pieces,
        guesses=guesses,
        prefilled=session.prefilled,
    )


def describe_setup(session: Session, rows: Sequence[Row]) -> dict[str, Any]:
    """Models, rule, options, device and versions, as JSON values."""
    target = session.target
    options = [
        {k: v for k, v in dataclasses.asdict(row.options).items() if k != "logit_bias"}
        for row in rows
    ]
    drafter, least = session.drafter, getattr(session.spec, "min_confidence", None)
    parents = parents_of(drafter)
    tree = {} if parents is None else {"parents": list(parents)}
    widths = widths_of(drafter)
    return {
        "target": target.name,
        "drafter": getattr(session.spec, "name", type(session.spec).__name__.lower()),
        "family": str(family_of(session.spec)),
        "rule": session.rule.name,
        **({} if session.rule.lossless else {"lossless": False}),
        "kind": drafter.kind,
        "num_draft": drafter.num_draft,
        **({} if least is None else {"min_confidence": least}),
        **({} if len(widths) == 1 else {"widths": list(widths)}),
        **tree,
        "batch": len(rows),
        "options": options[0] if all(o == options[0] for o in options) else options,
        "dtype": target.stored,
        "mesh": None if target.mesh is None else dict(target.mesh.shape),
        "device": machine.device_name(),
        "versions": machine.versions("jax"),
    }


def finish_reason(row: Row, tokens: Sequence[int]) -> str:
    """Why a row that is done wrote no more than the new ``tokens``."""
    return "stop" if tokens and tokens[-1] in row.stop_token_ids else "length"
