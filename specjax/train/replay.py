"""tau as training predicts it: the cycles of speculation replayed over a known greedy text."""

from __future__ import annotations

import dataclasses

import numpy as np

from specjax.trace.replay import steps


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

    Cycles begin where the last one failed, which is where texts are hard: the mean of the guesses'
    accuracy over *all* positions is another number.

    Args:
      matches: [B, T, K] bool, of `Objective.matches`: with token t pending, whether guess i is
        token t + 1 + i.
      prompt_lengths: [B], the pending token of the first cycle is the prompt's last.
      lengths: [B], of prompt and text; the last cycle is cut there, as it is by a limit or a stop.
    """
    accepted = np.cumprod(matches, axis=-1).sum(-1)  # [B, T]
    cycles = committed = 0
    for row, begin, end in zip(accepted.tolist(), prompt_lengths, lengths, strict=True):

        def accepts(length: int, row: list[int] = row) -> int:
            return row[length - 1]

        for _, _, count in steps(int(begin), int(end), accepts):
            cycles, committed = cycles + 1, committed + count
    return Replay(cycles, committed)
