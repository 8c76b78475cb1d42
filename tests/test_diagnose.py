"""experiments.diagnose on stored runs with known answers, and the check of the prediction."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_families
from made_traces import costs, plain, result_directory, speculative
from scripts import script, start

import specjax
from specjax.core.machine import Machine
from specjax.drafters import LM
from specjax.lab.bench.prediction import PredictionCheck, explain_pair
from specjax.lab.costs.calibration import calibrate
from specjax.lab.costs.explain_run import explain_run, explain_trace
from specjax.lab.records.costs import Calibration, load
from specjax.lab.records.run import Target
from specjax.trace import metrics, trace_file

MACHINE = Machine("another", devices=1, processor="", cores=2, jax="0")
TARGET = Target("demo:target")


def run_script(*arguments: str) -> None:
    start(script("diagnose"), "diagnose", *arguments)


def test_a_run_is_explained_case_by_case(tmp_path: Path, capsys: Any) -> None:
    path = result_directory(tmp_path / "run")
    found = explain_run(path)
    summary = json.loads((path / "metrics.json").read_text())
    cases = {case["name"]: case for case in summary["cases"] if case["drafter"] != "none"}
    assert found.keys() == cases.keys()
    one = found["dflash_k4_b1"]
    case = cases["dflash_k4_b1"]
    assert not isinstance(one, str)
    assert one.speedup == pytest.approx(case["compare"]["speedup"])
    assert one.measured_over_predicted == pytest.approx(
        case["predicted"]["measured_over_predicted"]
    )
    known = load(path / "costs.json")
    few = tuple(c for c in known.costs if c.batch == 1)
    dataclasses.replace(known, costs=few).save(path / "costs.json")
    assert "batch = 1, and 2 lies outside" in str(explain_run(path)["dflash_k4_b2"])
    summary["run"]["unpredicted"] = ["dflash"]
    (path / "metrics.json").write_text(json.dumps(summary))
    assert "no one cost" in str(explain_run(path)["dflash_k4_b2"])
    del summary["run"]["unpredicted"]
    (path / "metrics.json").write_text(json.dumps(summary))
    run_script(f"--run={path}", "--case=k4_b1")
    out = capsys.readouterr().out
    assert "dflash_k4_b1\n=====" in out and "dflash_k2" not in out
    assert " ".join(one.text.split()) in " ".join(out.split())


def test_a_trace_is_explained_with_costs(tmp_path: Path, capsys: Any) -> None:
    made = speculative()
    ours = dataclasses.replace(made, setup={**made.setup, "drafter": "dflash"})
    # Texts as short as these get the smallest caches.
    known = Calibration(MACHINE, TARGET, (dataclasses.replace(costs(), context=256),))
    found = explain_trace(ours, known, plain())
    assert (found.k, found.batch) == (4, 1)
    assert found.speedup == pytest.approx(metrics.compare(ours, plain()).speedup)
    assert found.cost == pytest.approx(found.tau / found.speedup)
    assert found.predicted == pytest.approx(found.tau / costs().total(4))
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("trace", "plain", "costs")}
    trace_file.save(ours, paths["trace"])
    trace_file.save(plain(), paths["plain"])
    known.save(paths["costs"])
    run_script(*(f"--{name}={path}" for name, path in paths.items()))
    out = " ".join(capsys.readouterr().out.split())
    assert f"The limit is {found.first.name}" in out and " ".join(found.text.split()) in out
    with pytest.raises(ValueError, match=r"drafter 'dflash \(z-lab DFlash\)', the costs are of"):
        explain_trace(made, known)
    elsewhere = dataclasses.replace(known, target=Target("another"))
    with pytest.raises(ValueError, match=r"target 'demo:target', the costs are of 'another'"):
        explain_trace(ours, elsewhere)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--run=/nowhere"], "no finished benchmark"),
        (["--run=a", "--trace=b"], "name one of the two"),
        (["--trace=b"], "--trace needs --costs"),
        (["--costs=b"], "go with --trace"),
        (["--run=a", "--save_costs=b"], "nothing is measured"),
        (["--save_costs=/nowhere/costs.json"], "no existing directory"),
        (["--drafter=ngram:0"], "at least 1 token"),
        (["--prompt_set=unheard"], "No prompt set 'unheard'"),
        (["--max_new_tokens=100000"], "exceed the model's limit"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], told: str, capsys: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)  # places that flags name are tried
    with pytest.raises(SystemExit) as stop:
        run_script(*arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert told in error and error.count("\n") == 1


def test_damaged_runs_are_refused(tmp_path: Path) -> None:
    path = result_directory(tmp_path / "run")
    (path / "costs.json").rename(path / "elsewhere.json")
    with pytest.raises(ValueError, match=r"no costs.json"):
        explain_run(path)
    whole = (path / "metrics.json").read_text()
    (path / "metrics.json").write_text(whole[:100])
    with pytest.raises(ValueError, match="no summary of a benchmark"):
        explain_run(path)
    (path / "metrics.json").write_text('{"run": {"device": "cpu"}, "cases": []}')
    with pytest.raises(ValueError, match="no case with a drafter"):
        explain_run(path)


def test_prediction_and_measurement_of_a_real_pair() -> None:
    """On a busy machine times say little: what must hold is how the numbers hang together."""
    target, spec = tiny.model(), tiny.make("ngram", 2)
    check = PredictionCheck(target, spec, [[1, 2, 3, 1, 2, 3]], ks=[2], max_new_tokens=24, cycles=4)
    check.round()
    check.round()
    found = check.result()
    (row,) = found.rows
    assert found.rounds == 2 and row.k == 2
    assert row.ratio == pytest.approx(row.speedup / row.predicted)
    assert found.worst == pytest.approx(abs(row.ratio - 1))
    assert 1 <= row.tau <= 3 and row.from_largest == pytest.approx(row.predicted)
    assert row.speedup > 0 and math.isfinite(row.single_alpha)
    with pytest.raises(ValueError, match="all fit into 256"):
        PredictionCheck(target, spec, [[1] * 250], ks=[2])

    told, known = explain_pair(target, spec, [[1, 2, 3, 1, 2, 3]], max_new_tokens=24, repeats=1)
    assert told.k == 2 and told.batch == 1
    assert known.costs[0].ks == (1, 2, 3, 4)
    assert told.predicted == pytest.approx(told.tau / known.at(context=30).total(2))


@pytest.mark.parametrize("kind", ["recurrent", "ring"])
def test_targets_and_drafts_of_other_kinds(kind: str) -> None:
    """What is measured of a cycle, and what is said of a drafter, need no slots."""
    target = tiny_families.model(kind, layers=1)
    spec = LM(tiny.near(target), 2)
    costs = calibrate(target, spec, ks=(2,), repeats=1, cycles=2).costs[0]
    assert costs.drafter == "lm" and costs.batch == 1
    report = specjax.check_drafter(target, spec, cycles=12)
    assert report.num_draft == 2 and report.cycles >= 12 and report.tau > 1.0
