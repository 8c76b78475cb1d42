"""The times of a trace: which rows ran together, and what a token, a cycle and a prefill took.

Prefill runs no head here, so that even the first token comes from a cycle: decoding lasts from the
end of prefill to the end of a request's last cycle and makes all of its tokens, plain or
speculative alike. Cycles of one device call share its time evenly (`Trace.from_device`): within a
call, times are interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from specjax.trace.trace import Cycle, Trace


def batches(trace: Trace) -> list[list[int]]:
    """The rows of each generation: neighbours on one clock, at most ``setup["batch"]`` of them."""
    most = trace.about.batch or len(trace.rows)
    found: list[list[int]] = []
    last = math.nan
    for b, row in enumerate(trace.rows):
        # When its prompts were fed names a generation; unknown, its first cycle's begin.
        clock = trace.texts[b].prefilled if trace.texts else math.nan
        if math.isnan(clock) and row:
            clock = row[0].begin
        other = clock != last and not math.isnan(clock) and not math.isnan(last)
        if not found or other or len(found[-1]) >= most:
            found.append([])
        found[-1].append(b)
        last = last if math.isnan(clock) else clock
    return found


def passes(trace: Trace) -> list[list[Cycle]]:
    """What each row that took part did, for every cycle that the device ran for a batch."""
    if trace.about.in_turn:  # rows that ran together share the times of a pass
        at: dict[float, list[Cycle]] = {}
        for cycle in trace:
            at.setdefault(cycle.begin, []).append(cycle)
        return [at[begin] for begin in sorted(at)]
    found = []
    for rows in batches(trace):
        longest = max(len(trace.rows[b]) for b in rows)
        found += [
            [trace.rows[b][j] for b in rows if j < len(trace.rows[b])] for j in range(longest)
        ]
    return found


def decode_seconds(trace: Trace) -> list[float | None]:
    """From the end of prefill to the end of the last cycle; None: unknown. 0 for no cycles.

    In rows that change hands it is the time of the cycles alone: what lies between them is the
    prefill of others, whose share of a row's time depends on who waits.
    """
    if trace.about.in_turn:
        spans = [_spent(row) for row in trace.rows]
        return [None if math.isnan(seconds) else seconds for seconds in spans]
    found: list[float | None] = []
    for b, row in enumerate(trace.rows):
        prefilled = trace.texts[b].prefilled if trace.texts else math.nan
        seconds = row[-1].end - prefilled if row else 0.0
        found.append(None if math.isnan(seconds) else seconds)
    return found


def timings(trace: Trace) -> dict[str, Any]:
    """All None unless every cycle has its time; ``ttft_ms`` where rows change hands, too."""
    keys = ["tps_decode"]
    keys += [k + end for k in ("tpot_ms", "step_ms", "ttft_ms") for end in ("", "_p50", "_p95")]
    found: dict[str, Any] = dict.fromkeys(keys)
    rows = [row for row in trace.rows if row]
    if not rows or any(math.isnan(c.begin) or math.isnan(c.end) for c in trace):
        return found
    steps = [1e3 * (together[0].end - together[0].begin) for together in passes(trace)]
    found |= _spread("step_ms", steps, sum(steps) / len(steps))
    if not trace.about.in_turn:  # there a row's first cycle waits for other rows
        firsts = [1e3 * row[0].end for row in rows]
        found |= _spread("ttft_ms", firsts, sum(firsts) / len(firsts))
    later = [(sum(c.committed for c in row) - 1, _after_first(trace, row)) for row in rows]
    later = [(tokens, seconds) for tokens, seconds in later if seconds > 0]
    if later:
        found["tps_decode"] = sum(n for n, _ in later) / sum(s for _, s in later)
    seconds = decode_seconds(trace)
    if None not in seconds:
        pairs = [(s, sum(c.committed for c in r)) for s, r in zip(seconds, trace.rows) if r]
        each = [1e3 * s / n for s, n in pairs if s is not None]
        total = sum(s for s, _ in pairs if s is not None)
        found |= _spread("tpot_ms", each, 1e3 * total / sum(n for _, n in pairs))
    return found


def _after_first(trace: Trace, row: Sequence[Cycle]) -> float:
    """Seconds that a row decodes behind its first cycle."""
    return _spent(row[1:]) if trace.about.in_turn else row[-1].end - row[0].end


def _spent(row: Sequence[Cycle]) -> float:
    """Seconds of its cycles."""
    return sum(c.end - c.begin for c in row)


def _spread(key: str, values: Sequence[float], pooled: float) -> dict[str, Any]:
    p50, p95 = np.percentile(values, [50, 95])
    return {key: pooled, f"{key}_p50": float(p50), f"{key}_p95": float(p95)}
