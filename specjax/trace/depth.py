"""tau by how long the text was: whether a drafter still guesses well behind thousands of tokens."""

from __future__ import annotations

import dataclasses

import numpy as np

from specjax.trace.bootstrap import Interval, ratio_intervals
from specjax.trace.trace import Trace

FIRST = 256  # tokens of the shortest texts; every further step is twice as long


@dataclasses.dataclass(frozen=True)
class Depth:
    """The cycles that began behind ``low`` to ``high - 1`` tokens, the prompt included."""

    low: int
    high: int
    tau: float  # tokens a cycle, pooled
    interval: Interval  # 95 %, over requests that have such cycles
    cycles: int
    requests: int


def by_depth(trace: Trace, *, resamples: int = 1000, seed: int = 0) -> tuple[Depth, ...]:
    """tau in steps of 0 to 255, 256 to 511, 512 to 1023, ... tokens; those without cycles left out.

    Args:
      trace: of which the text's length before each cycle is known.
      resamples: of the bootstrap over requests.
      seed: of the bootstrap.

    Raises:
      ValueError: if ``resamples`` is below 1.
    """
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: must be at least 1; 1000 is usual.")
    steps = sorted({_step(cycle.position) for cycle in trace})
    found = []
    for step in steps:
        cycles = [[c for c in row if _step(c.position) == step] for row in trace.rows]
        tokens = np.asarray([[sum(c.committed for c in row)] for row in cycles if row], float)
        counts = np.asarray([[len(row)] for row in cycles if row], float)
        (interval,) = ratio_intervals(tokens, counts, resamples=resamples, seed=seed)
        low = 0 if step == 0 else FIRST << (step - 1)
        tau = float(tokens.sum() / counts.sum())
        found.append(Depth(low, FIRST << step, tau, interval, int(counts.sum()), len(counts)))
    return tuple(found)


def _step(position: int) -> int:
    return (position // FIRST).bit_length()
