"""experiments.benchmark from end to end on tiny models: what it measures, keeps and refuses."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import pytest
import tiny
from tiny_benchmark import PROMPTS, config_of, make_place, read, run

import specjax
from specjax.lab.bench import job, measure, outputs, scoring
from specjax.lab.bench.exactness import differences
from specjax.lab.bench.prediction import forecast
from specjax.lab.bench.store import Store
from specjax.lab.bench.summary import summarise
from specjax.lab.bench.synthetic import parse_curve
from specjax.lab.records.codec import to_json
from specjax.lab.records.costs import load as load_costs
from specjax.runs.lines import read as read_lines
from specjax.trace import metrics, trace_file
from specjax.trace.trace import Trace


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("benchmark"))


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """A complete run, with costs of the drafters at temperature 0 and 1."""
    prepared = run(config_of(place), place / "finished")
    store = Store(place / "finished")
    measure.calibrate(prepared, store, repeats=1)
    measure.add_details(prepared, store)
    outputs.write(store, summarise(store))
    return store.path


def test_everything_is_there_and_follows_from_the_traces(place: Path, finished: Path) -> None:
    summary = read(finished / "metrics.json")
    run_record, cases = summary["run"], {c["name"]: c for c in summary["cases"]}
    assert run_record["valid"] and run_record["invalid_because"] == []
    assert run_record["template"] == "none" and len(run_record["prompts_sha256"]) == 64
    assert run_record["machine"] and run_record["versions"]["jax"] == jax.__version__
    prompts = read_lines(finished / "prompts.jsonl")
    assert [p["text"] for p in prompts] == [p["prompt"] for p in PROMPTS]
    assert len(cases) == 6 and next(iter(cases)) == "jsonl-none-T0-b2"
    target = specjax.load(place / "target")
    for name, case in cases.items():
        trace = trace_file.load(finished / "cases" / name / "trace.jsonl")
        found = to_json(metrics.figures(trace))
        assert {k: case["metrics"][k] for k in found} == found
        assert found["requests"] == 3 and case["metrics"]["compiles_after_warmup"] == 0
        assert case["intervals"] == to_json(metrics.with_intervals(trace))
        assert {t.category for t in trace.texts} == set(case["per_category"]) == {"def", "other"}
        records = read_lines(finished / "cases" / name / "results.jsonl")
        assert {(r["batch"], r["repeat"]) for r in records} == {(0, 0), (0, 1), (1, 0), (1, 1)}
        tokens = {i: n for r in records for i, n in zip(r["prompts"], r["tokens"])}
        assert sum(tokens.values()) == found["tokens"] and len(tokens) == 3
        # The text of prompt i is that of seed + i, whatever its batch.
        alone = specjax.generate(
            target,
            None,
            [p["prompt"] for p in PROMPTS],
            max_new_tokens=12,
            temperature=case["temperature"],
            seed=0,
        )
        if case["rule"] in ("greedy", "coupled"):
            assert [[t for c in row for t in c.emitted] for row in trace.rows] == alone.tokens
        assert all((c.detail is None) == (case["drafter"] == "none") for c in trace)
        if case["drafter"] == "none":
            assert case["compare"] is None and case["predicted"] is None
            continue
        shared = read_lines(finished / "cases" / name / "aiperf.jsonl")
        assert [r["completion_tokens"] for r in shared] == [
            sum(c.committed for c in row) for row in trace.rows
        ]
        plain = trace_file.load(finished / "cases" / case["plain"] / "trace.jsonl")
        compared = to_json(metrics.compare(trace, plain))
        assert {k: case["compare"][k] for k in compared} == compared
        expected = found["tau"] / load_cost(finished, case).total(3)
        assert case["predicted"]["speedup"] == pytest.approx(expected)
        ratio = compared["speedup"] / expected
        assert case["predicted"]["measured_over_predicted"] == pytest.approx(ratio)
    for name in ("results.md", "results.tex", "report.html", "figures/acceptance.svg"):
        assert (finished / name).stat().st_size > 100
    with (finished / "results.csv").open() as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert names == [*(row["name"] for row in summary["pooled"]), *cases]
    assert not list(finished.glob("cases/*/parts")) and not list(finished.glob("cases/*/details"))


def load_cost(directory: Path, case: dict[str, Any]) -> Any:
    keys = ("drafter", "rule", "temperature")
    costs = load_costs(directory, elsewhere=True).costs
    (found,) = [c for c in costs if all(getattr(c, k) == case[k] for k in keys)]
    return found


def test_turns_are_fair(finished: Path) -> None:
    """Each case comes first as often as any, and in every place."""
    batches = [measure.Batch(i, (), i, 1) for i in range(6)]
    orders = [order for _, _, order in measure.turns(batches, 2, 3)]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    for place in range(3):
        assert {order[place] for order in orders} == {0, 1, 2}
    two = [order for _, _, order in measure.turns(batches[:4], 1, 2)]
    assert two == [[0, 1], [1, 0], [1, 0], [0, 1]]
    names = [p.name for p in sorted((finished / "cases").iterdir()) if p.name.endswith("T0-b2")]
    seen = [read_lines(finished / "cases" / n / "results.jsonl") for n in names]
    for batch, repeat in ((0, 0), (1, 1)):
        places = [
            r["order"] for rs in seen for r in rs if (r["batch"], r["repeat"]) == (batch, repeat)
        ]
        assert sorted(places) == [0, 1, 2]


def test_a_killed_run_continues(place: Path, finished: Path, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(what: str, done: int, total: int) -> None:
        assert total == 24
        if done == 8 and not what.startswith("warming"):
            raise Killed

    with pytest.raises(Killed):
        run(config_of(place), tmp_path / "run", kill)
    store = Store(tmp_path / "run")
    with pytest.raises(ValueError, match=r"not complete: .* cases are missing"):
        summarise(store)
    cut = store.case("jsonl-ngram-k3-greedy-T0-b2") / "results.jsonl"
    kept = read_lines(cut)
    with cut.open("ab") as file:
        file.write(b'{"batch": 1, "prom')
    count: list[int] = []
    run(config_of(place), tmp_path / "run", lambda what, done, total: count.append(done))
    assert count[0] == 8 and count[-1] == 24
    assert read_lines(cut)[: len(kept)] == kept
    again, whole = summarise(store), read(finished / "metrics.json")
    assert again.run.valid

    def texts(path: Path) -> dict[Any, str]:
        names = [c["name"] for c in whole["cases"]]
        lines = {n: read_lines(path / "cases" / n / "results.jsonl") for n in names}
        return {(n, r["batch"], r["repeat"]): r["tokens_sha256"] for n in names for r in lines[n]}

    assert texts(store.path) == texts(finished)
    for one, other in zip(read(store.path / "metrics.json")["cases"], whole["cases"]):
        for key in ("tau", "survival", "accept_hist", "tokens", "cycles"):
            assert one["metrics"][key] == other["metrics"][key]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 13}, "max_new_tokens=12, this one has 13; use another --workdir"),
        ({"temperatures": (0.0,)}, r"temperatures=\[0.0, 1.0\], this one has \[0.0\]"),
        ({"num_prompts": 2}, "num_prompts=0, this one has 2"),
    ],
)
def test_another_config_is_refused(
    place: Path, finished: Path, changes: dict[str, Any], message: str
) -> None:
    before = {p: p.read_bytes() for p in finished.rglob("*.json*")}
    with pytest.raises(ValueError, match=message):
        run(config_of(place, **changes), finished)
    assert before == {p: p.read_bytes() for p in finished.rglob("*.json*")}


def test_a_directory_of_something_else_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no benchmark run"):
        run(config_of(place), tmp_path)


def test_only_like_is_compared_with_like(finished: Path, tmp_path: Path) -> None:
    other = shutil.copytree(finished, tmp_path / "other")
    merged = outputs.compare([finished, other])
    assert merged.run.runs == ("finished", "other") and len(merged.cases) == 12
    for field, value, message in (
        ("prompts_sha256", "0" * 64, "not comparable: prompts_sha256="),
        ("template", "chat", 'not comparable: template="none", .*other has "chat"'),
    ):
        for name in ("run.json", "metrics.json"):
            whole = read(finished / name)
            (whole if name == "run.json" else whole["run"])[field] = value
            (other / name).write_text(json.dumps(whole))
        with pytest.raises(ValueError, match=message):
            outputs.compare([finished, other])
    with pytest.raises(ValueError, match="holds no benchmark run"):
        outputs.compare([finished, tmp_path])


def test_the_margin_where_texts_part(place: Path, finished: Path) -> None:
    target = specjax.load(place / "target")
    plain = trace_file.load(finished / "cases" / "jsonl-none-T0-b2" / "trace.jsonl")
    row = list(plain.rows[1])
    other = (row[4].emitted[0] + 1) % 272
    row[4] = row[4].__class__(row[4].position, (), 0, 1, (other,))
    ours = Trace((plain.rows[0], tuple(row), plain.rows[2]), plain.texts)
    tokens = [*plain.texts[1].prompt_tokens, *(c.emitted[0] for c in plain.rows[1][:4])]
    logits = tiny.full_logits(target, [tokens])[0, -1]
    best = plain.rows[1][4].emitted[0]
    (found,) = differences(target, ours, plain)
    assert (found.request, found.token) == (1, 4) and logits.argmax() == best
    assert found.margin == pytest.approx(float(logits[best] - logits[other]), abs=1e-4)


def test_replay_equals_the_loop_and_needs_no_model(
    place: Path, finished: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    costs, stops = str(finished), ("confident:0.5",)
    config = config_of(place, mode="replay", temperatures=(0.0,), costs=costs, stop_rules=stops)
    store = Store(tmp_path / "replay")
    prepared = job.prepare(config, store)
    store.begin(prepared.run, prepared.prompts)
    scoring.record_all(prepared, store)
    monkeypatch.setattr(specjax.api, "Session", None)
    summary = scoring.score(store)
    outputs.write(store, summary)
    measured = {
        c["drafter"]: c for c in read(finished / "metrics.json")["cases"] if c["rule"] == "greedy"
    }
    cases = read(store.path / "metrics.json")["cases"]
    scored = [c for c in cases if c["stop_rule"] is None]
    assert [(c["drafter"], c["num_draft"]) for c in scored] == [
        (name, k) for name in ("draft", "ngram") for k in (1, 2, 3)
    ]
    for case in scored:
        if case["num_draft"] == 3:
            real = measured[case["drafter"]]["metrics"]
            for key in ("tau", "accept_hist", "survival", "cycles", "tokens"):
                assert case["metrics"][key] == real[key]
            expected = real["tau"] / load_cost(finished, case).total(3)
            assert case["predicted"]["speedup"] == pytest.approx(expected)
    stopped = [c for c in cases if c["stop_rule"] == "confident0.5"]
    assert {c["drafter"] for c in stopped} == {"draft"}
    assert "times were not measured" in (store.path / "results.md").read_text()


def test_predictions_are_the_cost_models(finished: Path, tmp_path: Path) -> None:
    golden = tmp_path / "golden.yaml"
    golden.write_text("m:\n  fast: {1: 1.8, 2: 2.5, 3: 2.4}\n  slow: {1: 1.5, 2: 1.7, 3: 2.0}\n")
    curves = [parse_curve(c) for c in ("2.2@3", f"{golden}:m:fast")]
    found = forecast(finished, curves)
    costs = load_costs(finished, elsewhere=True).costs
    assert len(found) == len(costs) * 2
    for record, cost in zip(found, [*costs, *costs]):
        assert record.ks == (3,)
        tau = 2.2 if "tau" in record.source else 2.5  # AL(3) < AL(2): the third adds nothing
        assert record.tau == (pytest.approx(tau),)
        assert record.speedup == (pytest.approx(tau / cost.total(3)),)
    case = "jsonl-ngram-k3-greedy-T0-b2"
    measured = read(finished / "metrics.json")["cases"]
    (again,) = [c for c in measured if c["name"] == case]
    survival = parse_curve(f"{finished}:{case}").survival(3)
    assert 1 + sum(survival) == pytest.approx(again["metrics"]["tau_uncut"])
