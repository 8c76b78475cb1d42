"""A method over everything that was asked of it: all prompts and sets, and all settings.

Cells of one set, temperature and batch size invite picking the best; a pooled row does not. Its
requests are drawn for the interval by prompt: what a prompt took at every temperature and batch
size goes together, as the same prompt is no new evidence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from specjax.lab.records.case import LOCKSTEP, Case, Comparison, Figures, Over
from specjax.trace.bootstrap import ratio_intervals
from specjax.trace.metrics import Intervals, speedup, sums
from specjax.trace.trace import Trace

NAME = "pooled"  # what begins the name of a pooled row


def pool(cases: Sequence[Case], trace_of: Callable[[str], Trace]) -> list[Case]:
    """A row for each method, plain decoding first.

    Args:
      cases: of one run. Those of a method (drafter, k, and what acceptance is forced to or stopped
        by) are pooled over prompt sets, temperatures and batch sizes; rules only where the rule
        follows from the temperature. Of batches in lockstep and refilled those in lockstep count.
      trace_of: a case's trace, by its name.

    Returns:
      [] for fewer than two settings, of which the cases are the pooled rows already. ``over`` of a
      row holds the prompt sets, temperatures and batch sizes, and the number of prompts.
    """
    # The same prompts once: in lockstep, whose speedups are the ones to quote.
    both = {_setting(c)[:3] for c in cases if c.rows == LOCKSTEP}
    cases = [c for c in cases if c.rows == LOCKSTEP or _setting(c)[:3] not in both]
    if len({_setting(c) for c in cases}) < 2:
        return []
    methods: dict[tuple[object, ...], list[Case]] = {}
    for case in cases:
        methods.setdefault(_method(case), []).append(case)
    several: list[list[Case]] = []
    for members in methods.values():
        if len({_setting(c) for c in members}) == len(members):
            several.append(members)
        else:
            rules = dict.fromkeys(c.rule for c in members)
            several += [[c for c in members if c.rule == rule] for rule in rules]
    return [_row(members, trace_of) for members in several]


def _setting(case: Case) -> tuple[object, ...]:
    return case.prompt_set, case.temperature, case.batch, case.rows


def _method(case: Case) -> tuple[object, ...]:
    forced = None if case.synthetic is None else case.synthetic.source
    return case.run, case.drafter, case.num_draft, case.stop_rule, forced


def _row(members: Sequence[Case], trace_of: Callable[[str], Trace]) -> Case:
    first = members[0]
    ours, theirs = _Sums(first.num_draft), _Sums(0)
    compared = all(c.compare is not None for c in members)
    for case in members:
        ours.add(case.prompt_set, trace_of(case.name))
        if compared:
            theirs.add(case.prompt_set, trace_of(case.plain))
    above, below = ours.arrays()
    tau, rate, tpot, *survival = (_ratio(a, b) for a, b in zip(above.sum(0), below.sum(0)))
    ends = ratio_intervals(above, below, resamples=1000, seed=0)
    compare = None
    if compared:
        others = theirs.arrays()
        seconds = np.stack([above[:, 2], others[0][:, 2]]) / 1e3
        lengths = np.stack([below[:, 2], others[1][:, 2]])
        if np.isfinite(seconds).all() and (seconds > 0).all() and (lengths > 0).all():
            compare = Comparison(**dataclasses.asdict(speedup(seconds, lengths)))
    rules = dict.fromkeys(c.rule for c in members)
    return Case(
        name="-".join([NAME, first.drafter, f"k{first.num_draft}", *rules]),
        drafter=first.drafter,
        num_draft=first.num_draft,
        mode=first.mode,
        kind=first.kind,
        family=first.family,
        stop_rule=first.stop_rule,
        synthetic=first.synthetic,
        run=first.run,
        lossless=all(c.lossless for c in members),
        rule=", ".join(rules),
        over=Over(
            prompt_sets=tuple(dict.fromkeys(c.prompt_set for c in members)),
            temperatures=tuple(dict.fromkeys(c.temperature for c in members)),
            batches=tuple(dict.fromkeys(c.batch for c in members)),
            prompts=len(above),
        ),
        metrics=Figures(
            tau=tau,
            accept_rate=rate,
            tpot_ms=tpot,
            survival=tuple(survival),
            tokens=int(above[:, 0].sum()),
            cycles=int(below[:, 0].sum()),
            requests=len(above),
        ),
        intervals=Intervals(ends[0], ends[1], tuple(ends[3:]), ends[2]),
        compare=compare,
    )


class _Sums:
    """`metrics.sums` of each prompt, added up over settings."""

    def __init__(self, most: int):
        self._most = most
        self._found: dict[tuple[str, int], np.ndarray] = {}  # [2, 3 + most]

    def add(self, prompt_set: str, trace: Trace) -> None:
        for b, both in enumerate(np.stack(sums(trace, self._most), axis=1)):
            key = (prompt_set, b)
            self._found[key] = self._found.get(key, 0.0) + both

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Two of [N, 3 + most], by prompt in the order of appearance."""
        both = np.stack(list(self._found.values()))
        return both[:, 0], both[:, 1]


def _ratio(above: float, below: float) -> float | None:
    value = above / below if below else None
    return value if value is not None and np.isfinite(value) else None
