"""What the host adds to a trace, so that pictures need neither model nor tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from specjax.checkpoint.load import Model
from specjax.core import machine
from specjax.drafters.base import parents_of, widths_of
from specjax.drafters.family import family_of
from specjax.session import Row, Session
from specjax.text import Reader, token_text
from specjax.trace.trace import Cycle, Text, Trace


def complete(
    trace: Trace, session: Session, rows: Sequence[Row], finish: Sequence[str | None]
) -> Trace:
    """The trace of ``session`` with what its rows are about, why they ended, and its setup."""
    target, prefilled = session.target, session.prefilled
    texts = [
        describe_row(target, row, end, cycles, prefilled)
        for row, end, cycles in zip(rows, finish, trace.rows, strict=True)
    ]
    return dataclasses.replace(trace, texts=tuple(texts), setup=describe_setup(session, rows))


def complete_row(
    cycles: Sequence[Cycle], session: Session, rows: Sequence[Row], index: int, finish: str
) -> Trace:
    """Completes the trace of row ``index`` alone, whose cycles are ``cycles``."""
    text = describe_row(session.target, rows[index], finish, cycles, session.prefilled)
    return Trace((tuple(cycles),), (text,), describe_setup(session, rows))


def describe_row(
    target: Model, row: Row, finish: str | None, cycles: Sequence[Cycle], prefilled: float
) -> Text:
    """The prompt and, token by token, the text of one row; ``prefilled`` in seconds."""
    tokenizer, prompt = target.tokenizer, list(row.prompt)
    pieces: list[str] = []
    guesses: dict[int, str] = {}
    if tokenizer is not None:
        ids = [token for cycle in cycles for token in cycle.emitted]
        pieces = [""] * len(ids)
        reader = Reader(tokenizer, prompt)
        for index, piece in [*reader.push(ids), *reader.flush()]:
            pieces[index] += piece
        rejected = (cycle.proposed[i] for cycle in cycles for i in cycle.wrong)
        guesses = {token: token_text(tokenizer, prompt, token) for token in dict.fromkeys(rejected)}
    return Text(
        prompt_tokens=tuple(prompt),
        seed=int(row.seed),
        finish=finish,
        prompt="" if tokenizer is None else tokenizer.decode(prompt),
        pieces=tuple(pieces),
        guesses=guesses,
        prefilled=prefilled,
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
        "dtype": str(target.dtype),
        "mesh": None if target.mesh is None else dict(target.mesh.shape),
        "device": machine.device_name(),
        "versions": machine.versions("jax"),
    }
