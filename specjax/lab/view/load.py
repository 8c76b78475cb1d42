"""Decoding under load in a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console

from specjax.lab.records.load import LoadReport, Spread
from specjax.lab.view.plain import table

HEADER = (
    *("rows", "drafter", "way", "tok/s", "tau", "busy"),
    *("first s", "last s", "ms a token", "x lock", "x plain"),
)


def progress(console: Console, concurrency: int) -> None:
    """Says that a concurrency is measured."""
    console.print(f"{concurrency} at a time: measured", soft_wrap=True)


def show(console: Console, report: LoadReport) -> None:
    """A row a way of decoding."""
    made = table(HEADER, _rows(report))
    for column in made.columns[:6]:
        column.no_wrap = True
    console.print(made)
    about = (
        f"{report.requests} requests of {report.shortest} to {report.longest} new tokens, all",
        f"asked at time 0, of {report.target} on {report.machine.device}. First, last: until its",
        "first and its last tokens are there; in lockstep a text is there when its batch is.",
        "Medians over requests, 95th percentiles below them. x: medians over",
        f"{report.rounds} pairs of neighbouring rounds; x plain: over plain decoding, refilled.",
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
            _both(one.ttft_s, 2),
            _both(one.latency_s, 2),
            _both(one.tpot_ms, 1),
            _ratio(one.over_lockstep),
            _ratio(one.over_plain),
        )


def _both(spread: Spread, digits: int) -> str:
    return f"{spread.p50:.{digits}f} {spread.p95:.{digits}f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
