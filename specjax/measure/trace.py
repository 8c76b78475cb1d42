"""The record of every cycle of a generation, on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

ACCEPTED, CORRECTION, BONUS = "accepted", "correction", "bonus"


@dataclasses.dataclass(frozen=True)
class Cycle:
    """One cycle of one row."""

    position: int  # committed length before it, prompt included
    proposed: tuple[int, ...]  # the guesses
    accepted: int  # how many of them the rule accepted
    committed: int  # tokens committed; below accepted + 1 where a stop or the limit cut it short


@dataclasses.dataclass(frozen=True)
class Trace:
    """The cycles of each row, in order."""

    rows: tuple[tuple[Cycle, ...], ...]

    @classmethod
    def from_device(cls, trace: Any, num_rows: int) -> Trace:
        """Reads `decode.Trace`; rows past ``num_rows`` are padding."""
        proposed, accepted, committed = (
            np.asarray(x) for x in (trace.proposed, trace.accepted, trace.committed)
        )
        rows = []
        for b in range(num_rows):
            starts = np.flatnonzero(accepted[b] >= 0)
            rows.append(
                tuple(
                    Cycle(
                        position=int(s),
                        proposed=tuple(int(t) for t in proposed[b, s] if t >= 0),
                        accepted=int(accepted[b, s]),
                        committed=int(committed[b, s]),
                    )
                    for s in starts
                )
            )
        return cls(tuple(rows))

    def __iter__(self) -> Iterator[Cycle]:
        for row in self.rows:
            yield from row

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
        """P(accepted >= i) for i = 1..K, over all cycles, guessed there or not."""
        most = max((len(c.proposed) for c in self), default=0)
        total = max(self.num_cycles, 1)
        return [sum(c.accepted >= i for c in self) / total for i in range(1, most + 1)]

    def labels(self, row: int) -> list[str]:
        """What each new token of a row is: an accepted guess, a correction or a bonus token."""
        labels: list[str] = []
        for c in self.rows[row]:
            own = CORRECTION if c.accepted < len(c.proposed) else BONUS
            labels += ([ACCEPTED] * c.accepted + [own])[: c.committed]
        return labels
