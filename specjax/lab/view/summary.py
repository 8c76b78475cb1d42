"""The statistics of a generation: one record a text, and one short summary of all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from specjax.lab.costs.speed import Speed
from specjax.lab.records.experts import Union
from specjax.lab.records.run import Run
from specjax.lab.view import marks
from specjax.trace.trace import Cycle


def make_record(
    asked: Mapping[str, Any],
    text: str,
    tokens: Sequence[int],
    finish: str | None,
    seed: int,
    cycles: Sequence[Cycle],
) -> dict[str, Any]:
    """What is kept of one text; ``asked`` are the fields that say what it answers.

    No wall-clock times: equal runs have equal records.
    """
    committed = sum(c.committed for c in cycles)
    return {
        **asked,
        "text": text,
        "tokens": list(tokens),
        "finish": finish,
        "seed": seed,
        "tau": committed / len(cycles),
        # Of each cycle: guesses (of a tree, its levels), accepted ones, committed tokens.
        "cycles": [[c.num_levels, c.accepted, c.committed] for c in cycles],
    }


@dataclasses.dataclass
class Report:
    """Everything that the summary says; what was not measured is None."""

    records: Sequence[Mapping[str, Any]]
    setup: str = ""
    rule: str = ""
    drafts: bool = True  # whether there is a drafter
    lossless: bool = True  # of the rule
    tokens: int = 0  # of this run, in
    seconds: float = 0.0  # of decoding, without compiling
    speed: Speed | None = None
    compile_seconds: tuple[float, float] | None = None  # speculative, plain; by then
    # A start's: until weights were read, until first programs were compiled (None: later).
    started: tuple[float, float | None] | None = None
    comparable: bool = False  # whether the text should equal that of plain decoding
    difference: tuple[int, int] | None = None
    exact: bool = True  # float32, and a cache that keeps it
    occupancy: float | None = None  # of rows that change hands
    experts: Union | None = None  # that a pass read, of a target with such
    load: Sequence[float] = ()  # processes that wanted a core before; of others
    others: Sequence[float] = ()  # cores that others kept busy meanwhile


def summary(console: Console, report: Report) -> None:
    """Prints the report."""
    cycles = [c for record in report.records for c in record["cycles"]]
    committed = sum(c[2] for c in cycles)
    texts = "1 text" if len(report.records) == 1 else f"{len(report.records)} texts"
    rows = [
        (
            "tau",
            f"{committed / len(cycles):.2f} tokens per target pass "
            f"({committed} tokens, {len(cycles)} passes, {texts})",
        )
    ]
    most = max(c[0] for c in cycles)
    if not most and report.drafts:
        rows.append(("guesses", "none: the drafter found nothing to guess in these texts"))
    if most:
        survival = [sum(c[1] >= i for c in cycles) / len(cycles) for i in range(1, most + 1)]
        curve = "  ".join(f"{i}: {s:.2f}" for i, s in enumerate(survival, 1))
        if min(c[0] for c in cycles) < most:
            mean = sum(c[0] for c in cycles) / len(cycles)
            rows.append(("guesses", f"{mean:.2f} a pass, {most} at most"))
        rows.append(("survival", f"{curve}  (share of passes that accepted so many)"))
    if report.speed is not None:
        rows += speed_rows(report, report.speed)
    elif report.seconds:
        rate = report.tokens / report.seconds
        told = "the first run of its programs, which is slower than further ones"
        rows.append(("speed", f"{rate:.1f} tokens/s, {told}; plain not measured"))
    if report.occupancy is not None:
        rows.append(("rows", f"{report.occupancy:.0%} of their cycles were some text's"))
    if report.experts is not None:
        rows.append(("experts", report.experts.text))
    if report.started is not None:
        read, compiled = report.started
        told = "" if compiled is None else f", programs of the first texts in {compiled:.1f} s"
        beside = "" if compiled is None else ", side by side"
        rows.append(("start", f"weights in {read:.1f} s{told}{beside}"))
    if report.setup:
        rows.append(("setup", report.setup + (f", rule {report.rule}" if report.rule else "")))
    if report.speed is not None or report.seconds:
        found = list(marks.of_run(Run(load=tuple(report.load), others=tuple(report.others))))
        rows += [("note", line) for line in marks.lines(found)]
    if told := marks.lossy(report.lossless, report.rule):
        rows.append(("NOTE", f"Not lossless: {told}"))
    for name, value in rows:
        console.print(f"{name:<10} {value}", soft_wrap=True, markup=False)


def speed_rows(report: Report, speed: Speed) -> list[tuple[str, str]]:
    """The comparison with plain decoding."""
    rows = [
        (
            "speed",
            f"{speed.speculative:.1f} tokens/s, plain {speed.plain:.1f} tokens/s: "
            f"speedup {speed.speedup:.2f}x (medians of {speed.repeats} interleaved runs each, the "
            f"speedup that of their pairs: {speed.spread[0]:.2f}x to {speed.spread[1]:.2f}x)",
        )
    ]
    if speed.first_ms is not None:
        ours, theirs = speed.first_ms
        rows.append(("prompt", f"first token after {ours:.1f} ms, plain {theirs:.1f} ms"))
    if report.compile_seconds is not None:
        ours, theirs = report.compile_seconds
        rows.append(("compiling", f"{ours:.1f} s, plain {theirs:.1f} s; not in the speed"))
    if report.comparable:
        rows.append(("check", check_line(report)))
    return rows


def check_line(report: Report) -> str:
    """Whether the text is that of plain decoding."""
    if report.difference is None:
        return "the text equals that of plain decoding, token for token"
    row, token = report.difference
    where = f"the text differs from plain decoding at token {token + 1} of text {row + 1}"
    if report.exact:
        return f"{where}: UNEXPECTED in float32 unless two tokens tie; please report it"
    return f"{where}: expected now and then in few bits, where rounding decides near ties"
