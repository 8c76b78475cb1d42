"""The record of every cycle of a generation, on the host.

From a trace, and nothing else, every number and picture is made: no model, no tokenizer. What a
cycle noted on the device is `decode.Trace`; the host adds the tokens' texts, the clock, and the
setup (`specjax.measure.trace_file` writes all of it).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

ACCEPTED, CORRECTION, BONUS = "accepted", "correction", "bonus"


@dataclasses.dataclass(frozen=True)
class Detail:
    """The laws of one cycle at the tokens that matter; all after temperature and truncation."""

    p: tuple[float, ...]  # [K] the target's probability of each guess
    q: tuple[float, ...]  # [K] the draft's; 1 for a deterministic guess
    rank: tuple[int, ...]  # [K] place of each guess in the target's order, 1 the likeliest; 0: none
    p_emitted: tuple[float, ...]  # [committed] the target's probability of each committed token


@dataclasses.dataclass(frozen=True)
class Cycle:
    """One cycle of one row.

    Times are seconds since the generation began, by a clock that stands still while programs are
    compiled; they are not compared.
    """

    position: int  # committed length before it, prompt included
    proposed: tuple[int, ...]  # the guesses
    accepted: int  # how many of them the rule accepted
    committed: int  # tokens committed; below accepted + 1 where a stop or the limit cut it short
    emitted: tuple[int, ...] = ()  # [committed] their ids
    detail: Detail | None = None
    begin: float = dataclasses.field(default=math.nan, compare=False)
    end: float = dataclasses.field(default=math.nan, compare=False)

    @property
    def labels(self) -> list[str]:
        """What each committed token is: an accepted guess, a correction or a bonus token."""
        own = CORRECTION if self.accepted < len(self.proposed) else BONUS
        return ([ACCEPTED] * self.accepted + [own])[: self.committed]


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of the device that ran cycles, on the clock of `Cycle`."""

    begin: float
    end: float
    cycles: int  # that it ran: each row that was not done took part in all of them


@dataclasses.dataclass(frozen=True)
class Text:
    """What a row is about, besides its cycles."""

    prompt_tokens: tuple[int, ...]
    seed: int = 0
    finish: str | None = None  # "stop", "length", or None: not over yet
    prompt: str = ""
    pieces: tuple[str, ...] = ()  # [new tokens] the characters each new token completes
    guesses: Mapping[int, str] = dataclasses.field(default_factory=dict)  # texts of rejected ids
    category: str = ""  # of the prompt, where its set has such
    # When the prompts were in the caches: seconds since the generation began.
    prefilled: float = dataclasses.field(default=math.nan, compare=False)


@dataclasses.dataclass(frozen=True)
class Trace:
    """The cycles of each row, in order."""

    rows: tuple[tuple[Cycle, ...], ...]
    texts: tuple[Text, ...] = ()  # one a row, or none
    # target, drafter, rule, num_draft, temperature, dtype, device, versions, ...: JSON values.
    setup: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    @classmethod
    def from_device(
        cls, trace: Any, tokens: Any, num_rows: int, calls: Sequence[Call] = ()
    ) -> Trace:
        """Reads `decode.Trace` and the committed ``tokens`` [B, S].

        Rows past ``num_rows`` are padding. Cycle j of a row is the j-th that the device ran, since
        a row takes part until it is done; those of one call share its time evenly, as the shapes of
        a cycle do not depend on what it accepts.
        """
        trace = jax.tree.map(np.asarray, trace)
        tokens, clock = np.asarray(tokens), _clock(calls)
        rows = []
        for b in range(num_rows):
            cycles = []
            for j, s in enumerate(np.flatnonzero(trace.accepted[b] >= 0).tolist()):
                guesses = tuple(int(t) for t in trace.proposed[b, s] if t >= 0)
                count = int(trace.committed[b, s])
                begin, end = clock[j] if j < len(clock) else (math.nan, math.nan)
                cycles.append(
                    Cycle(
                        position=s,
                        proposed=guesses,
                        accepted=int(trace.accepted[b, s]),
                        committed=count,
                        emitted=tuple(tokens[b, s : s + count].tolist()),
                        detail=_detail(trace.details, b, s, len(guesses), count),
                        begin=begin,
                        end=end,
                    )
                )
            rows.append(tuple(cycles))
        return cls(tuple(rows))

    def __repr__(self) -> str:
        counts = f"{len(self.rows)} rows, {self.num_cycles} cycles, {self.num_committed} tokens"
        return f"Trace({counts}, tau {self.tau:.2f})"

    def __iter__(self) -> Iterator[Cycle]:
        for row in self.rows:
            yield from row

    def _repr_html_(self) -> str:
        """The coloured text, as the last line of a notebook's cell shows it."""
        from specjax.view.html import show  # pictures are made of traces, not traces of pictures

        return show(self)._repr_html_()

    @property
    def num_cycles(self) -> int:
        """Target passes that committed something, over all rows."""
        return sum(len(row) for row in self.rows)

    @property
    def num_committed(self) -> int:
        return sum(c.committed for c in self)

    @property
    def tau(self) -> float:
        """Committed tokens per target pass, the target's own token included; NaN for no cycles."""
        return self.num_committed / self.num_cycles if self.num_cycles else float("nan")

    def survival(self) -> list[float]:
        """P(accepted >= i) for i = 1..K, over the cycles that had so many guesses."""
        most = max((len(c.proposed) for c in self), default=0)
        curve = []
        for i in range(1, most + 1):
            asked = [c for c in self if len(c.proposed) >= i]
            curve.append(sum(c.accepted >= i for c in asked) / len(asked))
        return curve

    def labels(self, row: int) -> list[str]:
        """What each new token of a row is: an accepted guess, a correction or a bonus token."""
        return [label for c in self.rows[row] for label in c.labels]

    def cut(self, row: int, num_tokens: int) -> Trace:
        """The trace of a row whose text was cut behind its first ``num_tokens`` new tokens."""
        kept: list[Cycle] = []
        for c in self.rows[row]:
            count = min(c.committed, num_tokens - sum(k.committed for k in kept))
            if count <= 0:
                break
            detail = c.detail
            if detail is not None:
                detail = dataclasses.replace(detail, p_emitted=detail.p_emitted[:count])
            kept.append(
                dataclasses.replace(c, committed=count, emitted=c.emitted[:count], detail=detail)
            )
        return dataclasses.replace(
            self, rows=(*self.rows[:row], tuple(kept), *self.rows[row + 1 :])
        )

    @classmethod
    def join(cls, traces: Sequence[Trace]) -> Trace:
        """The rows of several generations with one setup; each keeps the clock of its own."""
        return cls(
            rows=tuple(itertools.chain.from_iterable(t.rows for t in traces)),
            texts=tuple(itertools.chain.from_iterable(t.texts for t in traces)),
            setup=traces[0].setup if traces else {},
        )


def _clock(calls: Sequence[Call]) -> list[tuple[float, float]]:
    """(begin, end) of each cycle that the device ran."""
    times = []
    for call in calls:
        share = (call.end - call.begin) / max(call.cycles, 1)
        times += [
            (call.begin + i * share, call.begin + (i + 1) * share) for i in range(call.cycles)
        ]
    return times


def _detail(details: Any, b: int, s: int, guesses: int, count: int) -> Detail | None:
    """Row ``b``, slot ``s`` of `decode.Details`."""
    if details is None:
        return None
    return Detail(
        p=tuple(details.p[b, s, :guesses].tolist()),
        q=tuple(details.q[b, s, :guesses].tolist()),
        rank=tuple(details.rank[b, s, :guesses].tolist()),
        p_emitted=tuple(details.p_emitted[b, s, :count].tolist()),
    )
