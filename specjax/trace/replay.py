"""Speculation on a recorded greedy text: any k, any stopping rule; no model.

What the target says at temperature 0 does not depend on what was guessed. So a text that it wrote
and the guesses of a drafter at *every* position of it decide each cycle of each k: from a
*recording* (a trace in which every cycle commits one token, `specjax.lab.bench.recorder`) `replay`
walks the cycles that the loop would run.

Exact, up to the arithmetic of passes of other widths, for cycles, committed tokens and tau, where
the first k guesses do not depend on how many are made: a language model, EAGLE-3, Medusa, prompt
lookup. A DFlash block of another size is another input to its network: only the recorded k holds.
The recording says which (``exact_k``). How many guesses the last cycle of a text *would* have
accepted behind its end is known where the recording went on past it (``beyond``, which the recorder
notes); otherwise ``accepted`` of that cycle counts those inside the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from specjax.trace.trace import Cycle, Trace

# (committed length, guesses, the draft's probability of each) -> how many to put to the target.
Stop = Callable[[int, Sequence[int], Sequence[float]], int]


def replay(recording: Trace, k: int, *, stop: Stop | None = None) -> Trace:
    """The cycles of greedy speculation with ``k`` guesses over a recorded text.

    Args:
      recording: from `specjax.lab.bench.recorder.record`, or loaded from its file.
      k: guesses a cycle, 0 for plain decoding.
      stop: a stopping rule, that puts fewer of the k guesses to the target; None: all of them.

    Raises:
      ValueError: in one line, if ``recording`` is none, k was not recorded, or ``stop`` asks for
        guesses that there are not.
    """
    about = recording.about
    details = about.recording
    if details is None or any(c.committed != 1 for c in recording):
        raise ValueError(
            "This trace is no recording: it has no guesses at every position; record it first "
            "(specjax.lab.bench.recorder)."
        )
    if k != 0 and k not in details.exact_k:
        raise ValueError(
            f"k={k}: the recording of {about.drafter} holds for k in "
            f"{list(details.exact_k)}; record it anew with that num_draft."
        )
    rows = []
    for row, beyond in zip(recording.rows, details.beyond, strict=True):

        def propose(at: int, row: Sequence[Cycle] = row) -> tuple[int, ...]:
            guesses = row[at].proposed[:k]
            if stop is None:
                return guesses
            return guesses[: _checked(stop, row[at], k)]

        rows.append(walk(row[0].position if row else 0, _text(row), beyond, propose))
    return _result(recording, rows, k, about.drafter or "")


def walk(
    length: int,
    text: Sequence[int],
    beyond: Sequence[int],
    propose: Callable[[int], tuple[int, ...]],
) -> tuple[Cycle, ...]:
    """The cycles over one text.

    Args:
      length: of the prompt.
      text: the new tokens.
      beyond: what the target would say behind their end, as far as it is known.
      propose: the guesses behind that many new tokens.
    """
    known = (*text, *beyond)

    def accepts(at: int) -> int:
        return _count_equal(propose(at), known[at:])

    return tuple(
        Cycle(
            position=length + at,
            proposed=propose(at),
            accepted=accepted,
            committed=count,
            emitted=tuple(text[at : at + count]),
        )
        for at, accepted, count in steps(0, len(text), accepts)
    )


def steps(begin: int, end: int, accepts: Callable[[int], int]) -> Iterator[tuple[int, int, int]]:
    """(position, accepted guesses, committed tokens) of each cycle from ``begin`` to ``end``.

    A cycle commits the guesses it accepts and one token of the target's own, and the next begins
    behind them; the last one is cut at the end, as a stop token or the limit does it.
    """
    at = begin
    while at < end:
        accepted = accepts(at)
        count = min(accepted + 1, end - at)
        yield at, accepted, count
        at += count


def confident(least: float) -> Stop:
    """Stops before the first guess of which the draft is not ``least`` sure."""
    return lambda position, guesses, q: next(
        (i for i, value in enumerate(q) if value < least), len(q)
    )


def jointly_confident(least: float) -> Stop:
    """Stops before the guess with which the draft is no longer ``least`` sure of all so far."""
    return lambda position, guesses, q: int((np.cumprod(q) >= least).sum())


STOPS: dict[str, Callable[[float], Stop]] = {
    "confident": confident,
    "jointly": jointly_confident,
}


def parse_stop(text: str) -> tuple[str, Stop]:
    """(label, rule) of ``NAME:THRESHOLD``.

    ``confident:0.4`` stops before the first guess that the draft is not 0.4 sure of,
    ``jointly:0.2`` before it is no longer 0.2 sure of all guesses so far.

    Raises:
      ValueError: in one line, on anything else.
    """
    name, _, number = text.partition(":")
    try:
        least = float(number)
        if name not in STOPS or not 0 <= least <= 1:
            raise ValueError
    except ValueError:
        known = ", ".join(f"{n}:P" for n in STOPS)
        raise ValueError(f"stop_rules holds {text!r}: write {known}, P from 0 to 1.") from None
    return f"{name}{least:g}", STOPS[name](least)


def _checked(stop: Stop, cycle: Cycle, k: int) -> int:
    guesses = cycle.proposed[:k]
    q = cycle.detail.q[:k] if cycle.detail is not None else (1.0,) * len(guesses)
    count = stop(cycle.position, guesses, q)
    if not 0 <= count <= len(guesses):
        raise ValueError(
            f"The stopping rule asks for {count} of {len(guesses)} guesses at position "
            f"{cycle.position}."
        )
    return count


def _count_equal(guesses: Sequence[int], text: Sequence[int]) -> int:
    pairs = enumerate(zip(guesses, text))
    return next((i for i, (a, b) in pairs if a != b), min(len(guesses), len(text)))


def _text(row: Sequence[Cycle]) -> list[int]:
    return [token for c in row for token in c.emitted]


def _result(source: Trace, rows: Sequence[tuple[Cycle, ...]], k: int, drafter: str) -> Trace:
    """Without times: nothing ran. A row is a batch of its own."""
    setup = {
        key: v for key, v in source.setup.items() if key not in ("recording", "device", "mesh")
    }
    setup |= {"drafter": drafter, "num_draft": k, "rule": "greedy", "kind": "one_hot"}
    setup |= {"batch": 1, "mode": "replay"}
    return Trace(tuple(rows), source.texts, setup)
