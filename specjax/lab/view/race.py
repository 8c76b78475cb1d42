"""The race: speculation against plain decoding on one clock, replayed from recorded times."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence

from specjax.lab.view.html import Page, render
from specjax.lab.view.tokens import Token, check_row, finish_time, name_of, text_of, tokens
from specjax.trace.trace import Trace

REPLAY_SECONDS = 8.0  # that the slower side takes at the speed at which the replay begins


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two as templates read it."""

    kind: str  # "fast" or "plain"
    name: str
    prompt: str
    tokens: Sequence[Token]
    seconds: float  # until the last token
    passes: int

    @property
    def rate(self) -> str:
        """Tokens per second."""
        return f"{len(self.tokens) / self.seconds:,.0f}" if self.seconds > 0 else "0"


@dataclasses.dataclass(frozen=True)
class Race:
    """Both sides, and the speeds of the replay as powers of ten."""

    row: int
    sides: Sequence[Side]
    verdict: str

    @property
    def data(self) -> str:
        """What the script reads: when each token was there."""
        return json.dumps(
            {s.kind: {"ends": [t.end for t in s.tokens], "last": s.seconds} for s in self.sides}
        )

    @property
    def start(self) -> float:
        end = max(s.seconds for s in self.sides)
        return math.log10(end / REPLAY_SECONDS) if end > 0 else 0.0

    @property
    def low(self) -> float:
        return min(-3.0, self.start - 0.5)

    @property
    def high(self) -> float:
        return max(1.0, self.start + 1.0)


def race(fast: Trace, plain: Trace, row: int = 0) -> Page:
    """Both texts as they came, on one clock; play, pause, restart and the speed are buttons.

    Each token appears when its cycle was over, counted from the beginning of the generation, so
    that prefill is part of the race. Without scripts the page shows the end of it.

    Args:
      fast: of speculation, with times.
      plain: of plain decoding, of the same prompts.
      row: which row of both.

    Raises:
      ValueError: in one line, if there is no such row, a time is unknown or the prompts differ.
    """
    return Page(render("race", race=race_of(fast, plain, row)), "specjax race")


def race_of(fast: Trace, plain: Trace, row: int) -> Race:
    """What a race shows. Raises as `race` does."""
    check_race(fast, plain, row)
    named = (("fast", fast, name_of(fast)), ("plain", plain, "plain decoding"))
    sides = [
        Side(
            kind,
            name,
            text_of(trace, row).prompt,
            tokens(trace, row, rejected=False),
            finish_time(trace, row),
            len(trace.rows[row]),
        )
        for kind, trace, name in named
    ]
    return Race(row, sides, verdict(fast, plain, row))


def check_race(fast: Trace, plain: Trace, row: int) -> None:
    """Raises ValueError, in one line, unless the two rows can be raced."""
    for name, trace in (("the first trace", fast), ("the second trace", plain)):
        check_row(trace, row)
        cycles = trace.rows[row]
        if not cycles:
            raise ValueError(f"Row {row} of {name} has no cycles to replay.")
        if any(math.isnan(c.end) for c in cycles):
            raise ValueError(
                f"Row {row} of {name} has cycles without times; a race replays recorded ones."
            )
    prompts = [text_of(t, row).prompt_tokens for t in (fast, plain)]
    if prompts[0] != prompts[1]:
        raise ValueError(f"Row {row} has another prompt in either trace: race them on the same.")


def verdict(fast: Trace, plain: Trace, row: int) -> str:
    """Who was there first, in one sentence."""
    times = finish_time(fast, row), finish_time(plain, row)
    counts = [sum(c.committed for c in t.rows[row]) for t in (fast, plain)]
    names = name_of(fast), "plain decoding"
    told = [f"{n} tokens in {t:.3f} s" for n, t in zip(counts, times)]
    if counts[0] != counts[1]:  # sampled texts may end elsewhere: time alone says nothing
        rates = counts[0] / times[0], counts[1] / times[1]
        win = 0 if rates[0] >= rates[1] else 1
        ratio = rates[win] / rates[1 - win]
        return (
            f"{names[win]} wrote {ratio:.2f}x the tokens per second ({told[0]} against {told[1]})."
        )
    win = 0 if times[0] <= times[1] else 1
    ratio = times[1 - win] / times[win]
    return (
        f"{names[win]} finished first: {ratio:.2f}x as fast on this prompt, prefill included "
        f"({counts[0]} tokens in {times[0]:.3f} s against {times[1]:.3f} s)."
    )
