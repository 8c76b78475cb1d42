"""Decoding under load: both ways write the same texts, and the figures follow from the traces."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from tiny_checkpoint import write_tiny

from specjax import jobs
from specjax.lab.bench import load
from specjax.lab.records import codec
from specjax.lab.records.case import ROWS
from specjax.lab.records.load import LoadReport
from specjax.lab.view.load import show


def test_both_ways_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds: dict[str, list[load.Round]] = {"lockstep": [], "refilled": []}
    for way, found in rounds.items():
        run = getattr(load, way)
        keep = lambda *args, run=run, found=found: found.append(run(*args)) or found[-1]
        monkeypatch.setattr(load, way, keep)
    output = tmp_path / "load.json"
    report = jobs.benchmark_load(
        target=str(write_tiny(tmp_path / "target")),
        drafter=("ngram:3",),
        dtype="float32",
        concurrency=(2,),
        requests=5,
        longest=24,
        shortest=2,
        rounds=2,
        output=str(output),
    )
    for one, other in zip(*rounds.values(), strict=True):
        texts = [[sum((c.emitted for c in row), ()) for row in r.trace.rows] for r in (one, other)]
        assert texts[0] == texts[1] and one.trace.num_committed == report.served[0].tokens  # greedy
        cycles = [len(row) for row in one.trace.rows]
        pairs = [cycles[i : i + 2] for i in range(0, len(cycles), 2)]
        assert one.occupancy == sum(cycles) / (2 * sum(map(max, pairs)))
        assert 0 < other.occupancy <= 1
    keys = [(s.drafter, s.way) for s in report.served]
    assert keys == [(d, w) for d in ("none", "ngram:3") for w in ROWS]
    lockstep, plain, _, fast = report.served
    assert plain.tau == 1.0 and plain.over_lockstep is not None and plain.over_plain is None
    assert fast.over_plain is not None and lockstep.over_lockstep is None
    assert fast.requests == 5 and fast.rule == "greedy"
    # A text is there before the row asks again: of two rows each second belongs to two at most.
    spent = sum(rounds["refilled"][-1].latency)
    assert spent <= 2 * rounds["refilled"][-1].seconds * 1.01
    for one in report.served:
        assert 0 < one.ttft_s.p50 <= one.latency_s.p50 <= one.latency_s.p99
    assert codec.from_json(LoadReport, codec.read_file(output), "load") == report
    said = capsys.readouterr().out
    assert "refilled" in said and f"{plain.tokens_per_second:.0f}" in said


def test_what_cannot_be_asked() -> None:
    for options, message in (
        ({"concurrency": (0,)}, "concurrency"),
        ({"shortest": 9, "longest": 8}, "--shortest=9 is more than --longest=8"),
        ({"requests": 0}, "requests=0"),
    ):
        with pytest.raises(ValueError, match=message):
            load.Options(**options)  # type: ignore[arg-type]


def test_no_cell_of_the_table_is_cut_in_a_pipe() -> None:
    stored = codec.read_file(Path(__file__).parent.parent / "docs/results/load/32_to_128.json")
    report = codec.from_json(LoadReport, stored, "it")
    console = Console(file=io.StringIO(), width=80)
    show(console, report)
    told = console.file.getvalue()
    assert "…" not in told and "x plain" in told and "9.71 10.70" in told
