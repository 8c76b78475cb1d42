"""Speculation against plain decoding, timed in one process on the same prompts."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from specjax.lab.costs import turns
from specjax.trace.clock import timings


@dataclasses.dataclass(frozen=True)
class Speed:
    """Tokens a second, medians over the repeats, prefill included."""

    speculative: float
    plain: float
    speedup: float  # median of the ratios of neighbouring runs, not the ratio of the medians
    spread: tuple[float, float]  # the smallest and the largest of those ratios
    repeats: int
    seconds: tuple[float, float]  # of one run: speculative, plain
    first_ms: tuple[float, float] | None  # until a text's first tokens; None: not known


def compare(speculative: Callable[[], Any], plain: Callable[[], Any], *, repeats: int) -> Speed:
    """Times both in turn; each must have run before, so that nothing is compiled here.

    Args:
      speculative: a generation; returns its `specjax.Output`.
      plain: the same request without a draft.
      repeats: how often each is run. What drifts on the machine meets both alike.
    """
    pairs = [turns.take((speculative, plain), turn) for turn in range(repeats)]
    ratios = [a.tokens_per_second / b.tokens_per_second for a, b in pairs]
    return Speed(
        speculative=statistics.median(a.tokens_per_second for a, _ in pairs),
        plain=statistics.median(b.tokens_per_second for _, b in pairs),
        speedup=statistics.median(ratios),
        spread=(min(ratios), max(ratios)),
        repeats=repeats,
        seconds=(
            statistics.median(a.seconds for a, _ in pairs),
            statistics.median(b.seconds for _, b in pairs),
        ),
        first_ms=_first_ms(pairs),
    )


def _first_ms(pairs: Sequence[Sequence[Any]]) -> tuple[float, float] | None:
    """Time to first token, means over the texts of a run, medians over runs."""
    found = [[timings(out.trace)["ttft_ms"] for out in pair] for pair in pairs]
    if any(ms is None for pair in found for ms in pair):
        return None
    ours, theirs = (statistics.median(side) for side in zip(*found, strict=True))
    return ours, theirs


def first_difference(
    ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]
) -> tuple[int, int] | None:
    """(row, token) where two generations first differ; None where they are equal."""
    for row, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for i in range(max(len(a), len(b))):
            if a[i : i + 1] != b[i : i + 1]:
                return row, i
    return None
