"""The record of every cycle of a generation, on the host.

From a trace, and nothing else, every number and picture is made: no model, no tokenizer. What a
cycle noted on the device is a `Record` (core); the host adds the tokens' texts, the clock, and the
setup (`specjax.trace.trace_file` writes all of it).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from specjax.core import trees
from specjax.core.types import Parents
from specjax.trace.setup import Setup

ACCEPTED, CORRECTION, BONUS = "accepted", "correction", "bonus"


@dataclasses.dataclass(frozen=True)
class Detail:
    """The laws of one cycle at the tokens that matter; all after temperature and truncation."""

    p: tuple[float, ...]  # [K] the target's probability of each guess, after those it follows
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
    proposed: tuple[int, ...]  # the guesses, those of a tree in the order of their places
    accepted: int  # how many of them the rule accepted
    committed: int  # tokens committed; below accepted + 1 where a stop or the limit cut it short
    emitted: tuple[int, ...] = ()  # [committed] their ids
    detail: Detail | None = None
    begin: float = dataclasses.field(default=math.nan, compare=False)
    end: float = dataclasses.field(default=math.nan, compare=False)
    parents: Parents | None = None  # what each guess follows (`core.trees`); None: a chain
    path: tuple[int, ...] = ()  # [accepted] of a tree: which guesses were accepted, in order

    @property
    def right(self) -> tuple[int, ...]:
        """[accepted] which of the guesses were accepted."""
        return tuple(range(self.accepted)) if self.parents is None else self.path

    @property
    def wrong(self) -> tuple[int, ...]:
        """Which of the guesses were not accepted."""
        return tuple(i for i in range(len(self.proposed)) if i not in self.right)

    @property
    def last(self) -> int:
        """The place (0 the pending token, i + 1 guess i) at which the accepted guesses end."""
        return self.right[-1] + 1 if self.right else 0

    @property
    def levels(self) -> tuple[int, ...]:
        """[guesses] how many places behind the pending token each of them stands, from 1."""
        if self.parents is None:
            return tuple(range(1, len(self.proposed) + 1))
        return tuple(trees.depths(self.parents)[1:].tolist())

    @property
    def num_levels(self) -> int:
        """The most guesses that could have been accepted: all of a chain, M of a tree."""
        return len(self.proposed) if self.parents is None else max(self.levels, default=0)

    @property
    def decided(self) -> int:
        """The levels at which some guess was accepted or none of those there."""
        if self.parents is None:
            return min(self.accepted + 1, len(self.proposed))
        return self.accepted + (self.last in self.parents)

    @property
    def labels(self) -> list[str]:
        """What each committed token is: an accepted guess, a correction or a bonus token."""
        own = CORRECTION if self.accepted < self.decided else BONUS
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
    # Handed over from above, as pictures are made of traces: what a notebook's cell shows.
    page: ClassVar[Callable[[Trace], str] | None] = None

    @classmethod
    def from_device(
        cls, trace: Any, tokens: Any, num_rows: int, calls: Sequence[Call] = ()
    ) -> Trace:
        """Reads `core.record.Record` and the committed ``tokens`` [B, S].

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
                guesses, parents, path, kept = _guesses(trace, b, s)
                count = int(trace.committed[b, s])
                begin, end = clock[j] if j < len(clock) else (math.nan, math.nan)
                cycles.append(
                    Cycle(
                        position=s,
                        proposed=guesses,
                        accepted=int(trace.accepted[b, s]),
                        committed=count,
                        emitted=tuple(tokens[b, s : s + count].tolist()),
                        detail=_detail(trace.details, b, s, kept, count),
                        parents=parents,
                        path=path,
                        begin=begin,
                        end=end,
                    )
                )
            rows.append(tuple(cycles))
        return cls(tuple(rows))

    @property
    def about(self) -> Setup:
        """`setup` by name."""
        return Setup.of(self.setup)

    def __repr__(self) -> str:
        counts = f"{len(self.rows)} rows, {self.num_cycles} cycles, {self.num_committed} tokens"
        return f"Trace({counts}, tau {self.tau:.2f})"

    def __iter__(self) -> Iterator[Cycle]:
        for row in self.rows:
            yield from row

    def _repr_html_(self) -> str:
        """The coloured text, as the last line of a notebook's cell shows it."""
        assert Trace.page is not None, "set when the package is imported"
        return Trace.page(self)

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
        """P(accepted >= i) for i = 1..K, over the cycles that had so many guesses.

        A tree has as many as levels, whatever their width.
        """
        most = max((c.num_levels for c in self), default=0)
        curve = []
        for i in range(1, most + 1):
            asked = [c for c in self if c.num_levels >= i]
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

    def later(self, seconds: float) -> Trace:
        """The same, with its clock begun so many seconds before."""

        def moved(row: tuple[Cycle, ...]) -> tuple[Cycle, ...]:
            at = lambda c: {"begin": c.begin + seconds, "end": c.end + seconds}
            return tuple(dataclasses.replace(c, **at(c)) for c in row)

        texts = (dataclasses.replace(t, prefilled=t.prefilled + seconds) for t in self.texts)
        return dataclasses.replace(self, rows=tuple(map(moved, self.rows)), texts=tuple(texts))

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


def _guesses(
    trace: Any, b: int, s: int
) -> tuple[tuple[int, ...], Parents | None, tuple[int, ...], list[int]]:
    """Row ``b``, slot ``s`` of a `Record`: the guesses, their tree, its path, their places.

    Of a tree, what follows an empty place was never a guess either.
    """
    tokens, parents = trace.proposed[b, s].tolist(), trace.parents
    if parents is None:
        guesses = tuple(t for t in tokens if t >= 0)
        return guesses, None, (), list(range(len(guesses)))
    place = {0: 0}  # of those that are there: place of the block -> place among them
    for i, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        if token >= 0 and parent in place:
            place[i + 1] = len(place)
    kept = [i - 1 for i in place if i]
    route = trees.routes(parents)[trace.leaf[b, s]]
    path = tuple(place[i] - 1 for i in route[1 : trace.accepted[b, s] + 1].tolist())
    return tuple(tokens[i] for i in kept), tuple(place[parents[i]] for i in kept), path, kept


def _detail(details: Any, b: int, s: int, kept: list[int], count: int) -> Detail | None:
    """Row ``b``, slot ``s`` of `core.record.Details`, of the guesses ``kept``."""
    if details is None:
        return None
    return Detail(
        p=tuple(details.p[b, s, kept].tolist()),
        q=tuple(details.q[b, s, kept].tolist()),
        rank=tuple(details.rank[b, s, kept].tolist()),
        p_emitted=tuple(details.p_emitted[b, s, :count].tolist()),
    )
