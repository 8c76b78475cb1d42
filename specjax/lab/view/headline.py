"""What a run says first: a method over all that was asked, and only then the best cell."""

from __future__ import annotations

from collections.abc import Sequence

from specjax.lab.records.case import Case
from specjax.lab.records.run import Summary
from specjax.lab.view import marks
from specjax.lab.view.cases import best_of, series_name, setting_key, setting_of
from specjax.trace.bootstrap import Interval


def headline(summary: Summary) -> list[str]:
    """Sentences: the pooled row, and where there are several cells the best of them.

    There are no pooled rows where all cases are of one setting, and so pooled themselves.
    """
    cases, pooled = summary.cases, summary.pooled
    cells = len({setting_key(c) for c in cases})
    first = best_of(pooled or (cases if cells == 1 else ()))
    told = [] if first is None else [_pooled(first, pooled or cases)]
    best = best_of(cases)
    if best is None:
        return ["Plain decoding alone: nothing was guessed."]
    if cells > 1:
        num = sum(not c.is_plain for c in cases)
        told.append(
            f"Best cell of {num}, chosen after measuring: {setting_of(best)}, {series_name(best)}, "
            f"{_figures(best)}."
        )
    return told


def _pooled(row: Case, rows: Sequence[Case]) -> str:
    speedup, where = row.speedup, setting_of(row)
    if row.over is None:
        num = row.metrics.requests
        asked = "one prompt" if num == 1 else f"all {num} prompts"
        where = asked + (f" ({where})" if where else "")
    methods = sum(not c.is_plain for c in rows)
    how = "fastest" if speedup is not None else "most accepted"
    chosen = f" (the {how} of {methods} methods by this figure)" if methods > 1 else ""
    slower = ", so it is slower" if speedup is not None and speedup < 1 else ""
    return f"Over {where}: {series_name(row)}{chosen}: {_figures(row)}{slower}."


def _figures(case: Case) -> str:
    speedup, tau = case.speedup, case.metrics.tau
    told = "no tau" if tau is None else f"tau {tau:.2f}{ends(case.intervals.tau)}"
    told += "" if case.lossless else f" ({marks.Kind.LOSSY})"
    if speedup is None:
        found = case.predicted
        ahead = "" if found is None else f", predicted speedup {found.speedup:.2f}x"
        return f"{told}{ahead}, no speed measured"
    without = ", no interval from one prompt" if case.metrics.requests == 1 else ""
    return (
        f"{speedup:.2f}x{ends(case.speedup_interval)} the speed of plain decoding, {told}{without}"
    )


def ends(found: Interval) -> str:
    """An interval behind its figure, " [1.20, 1.40]"; nothing for None."""
    return "" if found is None else f" [{found[0]:.2f}, {found[1]:.2f}]"
