"""Records of the lab: what was written is read back, and what is wrong is named by its field."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_traces
import pytest

from specjax.lab.bench.store import Store
from specjax.lab.costs.contest import run_contest
from specjax.lab.records import codec
from specjax.lab.records.checked import CheckFile
from specjax.lab.records.compiled import load_report
from specjax.lab.records.costs import load
from specjax.lab.records.peer import Generated, PeerReport
from specjax.lab.records.run import load_summary

STORED = sorted((Path(__file__).parent.parent / "docs" / "results").glob("*/metrics.json"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_traces.result_directory(tmp_path_factory.mktemp("records") / "run")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_what_was_written_is_read_back(made: Path, tmp_path: Path) -> None:
    summary = load_summary(made / "metrics.json")
    summary.save(tmp_path / "metrics.json")
    assert read(tmp_path / "metrics.json") == read(made / "metrics.json")
    assert load_summary(tmp_path / "metrics.json") == summary
    assert summary.run == Store(made).read_run() and summary.pooled[0].over is not None
    known = load(made)
    known.save(tmp_path / "costs.json")
    assert (tmp_path / "costs.json").read_text() == (made / "costs.json").read_text()
    assert math.isnan(known.costs[0].call_s) and "NaN" not in (made / "costs.json").read_text()


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.parent.name)
def test_files_of_older_versions_are_read(path: Path) -> None:
    """Each figure is the one that the file has."""
    before, found = read(path), load_summary(path)
    assert len(found.cases) == len(before["cases"])
    for case, old in zip(found.cases, before["cases"]):
        new = codec.to_json(case)
        assert {k: new["metrics"][k] for k in old["metrics"]} == old["metrics"]
        for key in ("intervals", "compare", "wall"):
            assert new[key] == old[key]
        for key, value in (old["predicted"] or {}).items():
            assert new["predicted"][key] == value


def change(*path: str | int, value: Any = None) -> Callable[[Any], None]:
    """Sets what lies at ``path``; removes it for no value."""

    def damage(whole: Any) -> None:
        for part in path[:-1]:
            whole = whole[part]
        if value is None:
            del whole[path[-1]]
        else:
            whole[path[-1]] = value

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("cases", 1, "metrics", "tau", value="2.5"), 'metrics: tau is "2.5", which it'),
        (change("cases", 1, "metrics", "tokens", value=2.5), "metrics: tokens is 2.5, which it"),
        (change("cases", 1, "metrics", "survival", value=[1, "x"]), r'survival\[1\] is "x"'),
        (change("cases", 1, "compare", "speedup_interval", value=[1.0]), r"speedup_interval is \["),
        (change("cases", 1, "predicted", "curve", "ks"), "predicted: curve has no 'ks'"),
        (change("cases", 1, "name"), "Case 1 has no 'name'"),
        (change("cases", 1, value=[]), r"Case 1 is \[\], not an object"),
        (change("run", "machine", "cores", value="two"), 'run: machine: cores is "two"'),
        (change("run", "valid", value=1), "run: valid is 1, which it cannot be"),
        (change("version", value=9), "of version 9, this program reads version 1"),
        (change("cases"), 'lacks "run" or "cases"'),
    ],
)
def test_what_is_wrong_is_named(
    made: Path, tmp_path: Path, damage: Callable[[Any], None], message: str
) -> None:
    whole = read(made / "metrics.json")
    damage(whole)
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=message) as error:
        load_summary(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("run.json", change("version", value=2), "of version 2, this program reads version 1"),
        ("run.json", change("target", "layers", value="4"), 'run.json: target: layers is "4"'),
        ("costs.json", change("costs", 0, "verify", value={"x": 1}), "'x' is no whole number"),
        (
            "costs.json",
            change("costs", 0, "plain_s", value=-1.0),
            r"costs\[0\]: Costs with",
        ),
    ],
)
def test_files_of_a_run_are_checked_alike(
    made: Path, tmp_path: Path, name: str, damage: Callable[[Any], None], message: str
) -> None:
    whole = read(made / name)
    damage(whole)
    (tmp_path / name).write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=message):
        load(tmp_path) if name == "costs.json" else Store(tmp_path).read_run()


def test_stored_reports_of_compilers_peers_and_predictions_are_read() -> None:
    results = STORED[0].parent.parent
    reports = sorted((results / "compile").rglob("*.json"))
    assert len(reports) > 30
    for path in reports:
        report, raw = load_report(path, path.name), read(path)["cycle"]
        assert report.cycle.floor.bytes == raw["floor"]["bytes"]
        written = codec.to_json(report.cycle)
        for loops in raw.get("loops", []):
            if "expected" in loops:  # before they said why
                loops["why"] = "experts" if loops.pop("expected") else "trips"
        assert {name: written[name] for name in raw if name in written and name != "floor"} == {
            name: value for name, value in raw.items() if name in written and name != "floor"
        }
    peer = codec.from_json(PeerReport, codec.read_file(results / "peer" / "demo_cpu.json"), "it")
    assert peer.costs["float32"].whole_pass > peer.costs["float32"].products[1]
    assert codec.to_json(peer)["costs"]["float32"]["pass"] == peer.costs["float32"].whole_pass
    checked = codec.from_json(
        CheckFile, codec.read_file(results / "predict" / "demo_lm.json"), "it"
    )
    assert checked.worst == max(abs(row.ratio - 1) for row in checked.rows)


def test_contenders_take_turns_and_are_compared_pair_by_pair() -> None:
    """The second takes a third of the time; both slow down together, pair by pair."""
    calls: list[tuple[str, int]] = []

    def contender(name: str, pace: float) -> Callable[[Any], Generated]:
        def run(prompt: Any) -> Generated:
            calls.append((name, len(prompt)))
            return Generated((1, 2, 3, 4), pace * (1 + (len(calls) + 1) // 2), passes=2)

        return run

    both = {"slow": contender("slow", 3.0), "fast": contender("fast", 1.0)}
    found = run_contest(both, [[7], [7, 7]], repeats=4)
    # Once untimed, one by one; then side by side, nobody always first.
    assert calls[:4] == [("slow", 1), ("slow", 2), ("fast", 1), ("fast", 2)]
    firsts = [name for name, _ in calls[4::2]]
    assert len(calls) == 4 + 2 * 8 and firsts.count("slow") == firsts.count("fast") == 4
    assert found.best(["slow", "fast"]) == "fast" and found.rates["slow"].tau == 2.0
    assert found.rates["fast"].over(found.rates["slow"]).median == pytest.approx(3.0)
    assert found.texts["fast"] == [[1, 2, 3, 4]] * 2
