"""Decoding under load in a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console

from specjax.lab.records.load import LoadReport, Spread
from specjax.lab.view.plain import table

_WIDTH = 132  # columns in a file or a pipe, so that no cell is cut
HEADER = (
    *("rows", "drafter", "way", "tok/s", "tau", "busy"),
    *("x lock", "x plain", "TTFT s", "latency s", "TPOT ms", "gap ms"),
)


def progress(console: Console, concurrency: int) -> None:
    """Says that a concurrency is measured."""
    console.print(f"{concurrency} at a time: measured", soft_wrap=True)


def show(console: Console, report: LoadReport) -> None:
    """A row a way of decoding."""
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    made = table(HEADER, _rows(report))
    for column in made.columns[:6]:
        column.no_wrap = True
    console.print(made)
    about = (
        f"Requests of {report.shortest} to {report.longest} new tokens, of {report.target} on",
        f"{report.machine.device}. Each row asks when the answer before is there; in lockstep that",
        "is when its batch is. TTFT: from asking to the first tokens; TPOT: a token behind them;",
        "gap: between a text's cycles, those of one call of the device evenly apart.",
        f"Medians and 99th percentiles; x: medians over {report.rounds} pairs of neighbouring",
        "rounds, plain decoding the same way.",
    )
    console.print(" ".join(about), soft_wrap=True)


def _rows(report: LoadReport) -> Iterator[tuple[str, ...]]:
    for one in report.served:
        yield (
            str(one.concurrency),
            one.drafter,
            one.way,
            f"{one.tokens_per_second:.0f}",
            f"{one.tau:.2f}",
            f"{one.occupancy:.0%}",
            _ratio(one.over_lockstep),
            _ratio(one.over_plain),
            _both(one.ttft_s, 2),
            _both(one.latency_s, 2),
            _both(one.tpot_ms, 1),
            _both(one.gap_ms, 0),
        )


def _both(spread: Spread, digits: int) -> str:
    return f"{spread.p50:.{digits}f} {spread.p99:.{digits}f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
