"""A method over everything that was asked of it: all prompts and sets, and all settings.

Cells of one set, temperature and batch size invite picking the best; a pooled row does not. Its
requests are drawn for the interval by prompt: what a prompt took at every temperature and batch
size goes together, as the same prompt is no new evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from specjax.trace.bootstrap import ratio_intervals
from specjax.trace.metrics import speedup, sums
from specjax.trace.trace import Trace

Case = Mapping[str, Any]
NAME = "pooled"  # what begins the name of a pooled row
_SETTING = ("prompt_set", "temperature", "batch")


def pool(cases: Sequence[Case], trace_of: Callable[[str], Trace]) -> list[dict[str, Any]]:
    """A row for each method, plain decoding first, in the shape of the cases of metrics.json.

    Args:
      cases: of one run. Those of a method (drafter, k, and what acceptance is forced to or stopped
        by) are pooled over prompt sets, temperatures and batch sizes; rules only where the rule
        follows from the temperature.
      trace_of: a case's trace, by its name.

    Returns:
      [] for fewer than two settings, of which the cases are the pooled rows already. ``over`` of a
      row holds the prompt sets, temperatures and batch sizes, and the number of prompts.
    """
    if len({_setting(c) for c in cases}) < 2:
        return []
    methods: dict[tuple[Any, ...], list[Case]] = {}
    for case in cases:
        methods.setdefault(_method(case), []).append(case)
    several: list[list[Case]] = []
    for members in methods.values():
        if len({_setting(c) for c in members}) == len(members):
            several.append(members)
        else:
            rules = dict.fromkeys(c.get("rule") for c in members)
            several += [[c for c in members if c.get("rule") == rule] for rule in rules]
    return [_row(members, trace_of) for members in several]


def _setting(case: Case) -> tuple[Any, ...]:
    return tuple(case.get(key) for key in _SETTING)


def _method(case: Case) -> tuple[Any, ...]:
    forced = case.get("synthetic") or {}
    return (
        case.get("run"),
        case["drafter"],
        case.get("num_draft"),
        case.get("stop_rule"),
        forced.get("source"),
    )


def _row(members: Sequence[Case], trace_of: Callable[[str], Trace]) -> dict[str, Any]:
    first, most = members[0], int(members[0].get("num_draft") or 0)
    ours, theirs = _Sums(most), _Sums(0)
    compared = all(c.get("compare") for c in members)
    for case in members:
        ours.add(case["prompt_set"], trace_of(case["name"]))
        if compared:
            theirs.add(case["prompt_set"], trace_of(case["plain"]))
    above, below = ours.arrays()
    names = ("tau", "accept_rate", "tpot_ms")
    values = [_ratio(a, b) for a, b in zip(above.sum(0), below.sum(0))]
    ends = ratio_intervals(above, below, resamples=1000, seed=0)
    compare = None
    if compared:
        others = theirs.arrays()
        seconds = np.stack([above[:, 2], others[0][:, 2]]) / 1e3
        lengths = np.stack([below[:, 2], others[1][:, 2]])
        if np.isfinite(seconds).all() and (seconds > 0).all() and (lengths > 0).all():
            compare = speedup(seconds, lengths)
    rules = dict.fromkeys(str(c.get("rule", "")) for c in members)
    kept = ("drafter", "num_draft", "mode", "kind", "family", "stop_rule", "synthetic", "run")
    lossy = {} if all(c.get("lossless", True) for c in members) else {"lossless": False}
    return {
        "name": "-".join([NAME, str(first["drafter"]), f"k{most}", *rules]),
        **{key: first[key] for key in kept if key in first},
        **lossy,
        "rule": ", ".join(rules),
        "over": {
            "prompt_sets": list(dict.fromkeys(c.get("prompt_set") for c in members)),
            "temperatures": list(dict.fromkeys(c.get("temperature") for c in members)),
            "batches": list(dict.fromkeys(c.get("batch") for c in members)),
            "prompts": len(above),
        },
        "metrics": {
            **dict(zip(names, values)),
            "survival": values[3:],
            "tokens": int(above[:, 0].sum()),
            "cycles": int(below[:, 0].sum()),
            "requests": len(above),
        },
        "intervals": {**dict(zip(names, ends)), "survival": ends[3:]},
        "compare": compare,
        "predicted": None,
    }


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
