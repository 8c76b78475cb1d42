"""Interleaved timings, and the costs drawn from them.

What drifts on a machine (clock, neighbours) meets all alike: a sample times, for one k, the plain
step, a cycle that only verifies, the drafter alone, a whole cycle and the plain step again. A cost
is the median over the samples of its ratio to the plain steps around it.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from specjax.lab.records.costs import Costs

Run = Callable[[], float]  # seconds of a cycle


@dataclasses.dataclass(frozen=True)
class Timers:
    """What is timed for one k; without a drafter there is nothing but verification."""

    plain: Run
    verify: Run
    draft: Run | None = None
    cycle: Run | None = None


@dataclasses.dataclass(frozen=True)
class Sample:
    """One k, timed once; all but ``plain_s`` in plain steps."""

    plain_s: float
    verify: float
    draft: float
    cycle: float

    @property
    def rest(self) -> float:
        return self.cycle - self.draft - self.verify


def take(timers: Timers, *, reverse: bool) -> Sample:
    """Times everything once, the plain step first and last; ``reverse`` the others' order."""
    runs = {"verify": timers.verify, "draft": timers.draft, "cycle": timers.cycle}
    names = [name for name, run in runs.items() if run is not None]
    before = timers.plain()
    seconds = {}
    for name in reversed(names) if reverse else names:
        run = runs[name]
        assert run is not None
        seconds[name] = run()
    plain_s = (before + timers.plain()) / 2
    draft = seconds.get("draft", 0.0)
    return Sample(
        plain_s=plain_s,
        verify=seconds["verify"] / plain_s,
        draft=draft / plain_s,
        cycle=seconds.get("cycle", seconds["verify"] + draft) / plain_s,
    )


def summarise(
    samples: Mapping[int, Sequence[Sample]],
    *,
    batch: int,
    context: int,
    draft_calls: Mapping[int, int],
    call_s: float = math.nan,
    drafter: str = "",
    rule: str = "",
    temperature: float = 0.0,
) -> Costs:
    """Medians over the samples of each k.

    The arguments behind ``samples`` are the fields of `Costs`.

    Raises:
      ValueError: if there is a k without samples, or none at all.
    """
    if not samples or not all(samples.values()):
        raise ValueError("No samples to draw costs from: time at least one round.")

    def medians(name: str) -> dict[int, float]:
        return {
            k: statistics.median(getattr(s, name) for s in taken)
            for k, taken in sorted(samples.items())
        }

    return Costs(
        batch=batch,
        context=context,
        plain_s=statistics.median(s.plain_s for taken in samples.values() for s in taken),
        verify=medians("verify"),
        draft=medians("draft"),
        draft_calls=dict(draft_calls),
        rest=statistics.median(medians("rest").values()),
        cycle=medians("cycle"),
        call_s=call_s,
        noise=max(_spread([s.cycle for s in taken]) for taken in samples.values()),
        drafter=drafter,
        rule=rule,
        temperature=temperature,
    )


def _spread(values: Sequence[float]) -> float:
    """Distance of the quartiles over the median; 0 for one value."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle
