"""tau as training predicts it: the cycles of speculation replayed over a known greedy text."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Replay:
    """What greedy speculation does on some texts."""

    cycles: int
    committed: int

    @property
    def tau(self) -> float:
        """Committed tokens a target pass, the target's own token included; NaN for no cycles."""
        return self.committed / self.cycles if self.cycles else float("nan")


def replay(matches: np.ndarray, prompt_lengths: np.ndarray, lengths: np.ndarray) -> Replay:
    """Runs through texts that the target wrote greedily, a cycle at a time.

    A cycle begins at the pending token, accepts the guesses up to the first that differs from the
    text, commits them and one token of the target's own, and so the next one begins. (The mean of
    the guesses' accuracy over *all* positions is another number: cycles begin where the last one
    failed, which is where texts are hard.)

    Args:
      matches: [B, T, K] bool, of `Objective.matches`: with token t pending, whether guess i is
        token t + 1 + i.
      prompt_lengths: [B], the pending token of the first cycle is the prompt's last.
      lengths: [B], of prompt and text; the last cycle is cut there, as it is by a limit or a stop.
    """
    accepted = np.cumprod(matches, axis=-1).sum(-1)  # [B, T]
    cycles = committed = 0
    for row, begin, end in zip(accepted, prompt_lengths, lengths, strict=True):
        length = int(begin)
        while length < end:
            count = min(int(row[length - 1]) + 1, int(end) - length)
            cycles, committed, length = cycles + 1, committed + count, length + count
    return Replay(cycles, committed)
