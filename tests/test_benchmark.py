"""experiments.benchmark from end to end on tiny models: what it measures, keeps and refuses."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_checkpoint import write_tiny

import specjax
from configs.benchmark import get_config
from specjax.jobs import benchmarking
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

PROMPTS = [
    {"prompt": "def area(", "category": "def"},
    {"prompt": "x = 1\n", "category": "other"},
    {"prompt": "def naïve(é):", "category": "def"},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, a draft that often agrees with it, and prompts."""
    path = tmp_path_factory.mktemp("benchmark")
    write_tiny(path / "target")
    write_tiny(path / "draft", noise=0.05)
    lines = [json.dumps(p) + "\n" for p in PROMPTS]
    (path / "prompts.jsonl").write_text("".join(lines))
    return path


def config_of(place: Path, **changes: Any) -> dict[str, Any]:
    config = get_config().to_dict() | {
        "target": str(place / "target"),
        "drafters": (f"{place / 'draft'}:3", "ngram:3"),
        "prompt_sets": (f"jsonl:{place / 'prompts.jsonl'}",),
        "num_prompts": 0,
        "temperatures": (0.0, 1.0),
        "batches": (2,),
        "rows": ("lockstep",),
        "max_new_tokens": 12,
        "repeats": 2,
    }
    assert not changes.keys() - config.keys()
    return config | changes


def run(config: dict[str, Any], path: Path, report: Any = lambda *_: None) -> job.Job:
    """The measurement, without what is made of it."""
    store = Store(path)
    prepared = job.prepare(config, store)
    store.begin(prepared.run, prepared.prompts)
    measure.measure(prepared, store, report)
    return prepared


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """A complete run, with costs of the drafters at temperature 0 and 1."""
    prepared = run(config_of(place), place / "finished")
    store = Store(place / "finished")
    measure.calibrate(prepared, store, repeats=1)
    measure.add_details(prepared, store)
    outputs.write(store, summarise(store))
    return store.path


def read(path: Path) -> Any:
    return json.loads(path.read_text())


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


def test_a_target_kept_in_several_ways(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run each, every speedup over plain decoding of the same weights, and one table."""
    asked = {"stored": ("full", "int8"), "drafters": ("ngram:3",), "temperatures": (0.0,)}
    config = config_of(place, **asked, repeats=1, calibrate=0)
    benchmarking.benchmark(config=config, workdir=str(tmp_path / "both"))
    told = [" ".join(capsys.readouterr().out.split()), (tmp_path / "both/results.md").read_text()]
    for text in told:
        assert "over plain decoding of its own run" in text and "layers in int8" in text
        assert all(
            f"{m} ({n})" in text for m in ("ngram", "plain decoding") for n in ("full", "int8")
        )
    runs = [read(tmp_path / "both" / n / "metrics.json") for n in ("full", "int8")]
    hashes = [
        [r["tokens_sha256"] for r in results(tmp_path / "both" / n)] for n in ("full", "int8")
    ]
    assert hashes[0] != hashes[1]  # another model
    for run in runs:
        plain, guessing = run["cases"]
        ratio = plain["metrics"]["tpot_ms"] / guessing["metrics"]["tpot_ms"]
        assert guessing["compare"]["speedup"] == pytest.approx(ratio, rel=0.2)
    for changes, words in (
        ({"stored": ("full",)}, "name two or more of full, packed, int8, fp8"),
        ({"stored": ("full", "int9")}, "name two or more of full, packed, int8, fp8"),
        ({"quantize": "int8"}, "and quantize both say how"),
        ({"stored": ("full", "packed")}, "weights=packed, but no matrix"),
    ):
        with pytest.raises(ValueError, match=words):
            benchmarking.begin(
                benchmarking.Options(config=config | changes, workdir=str(tmp_path / "no"))
            )
    assert not (tmp_path / "no").exists()


def results(path: Path) -> list[dict[str, Any]]:
    """The measurements of a run, plain decoding's."""
    return [line for f in path.glob("cases/*none*/results.jsonl") for line in read_lines(f)]


def test_rows_that_change_hands_beside_lockstep(place: Path, tmp_path: Path) -> None:
    """The same texts and cycles, and speeds of the cycles alone; nothing compiles late."""
    asked = {"rows": ("lockstep", "refilled"), "drafters": ("ngram:3",), "repeats": 1}
    prepared = run(config_of(place, **asked), tmp_path / "run")
    store = Store(tmp_path / "run")
    measure.add_details(prepared, store)
    measure.calibrate(prepared, store, repeats=1)
    summary = summarise(store)
    assert summary.run.valid, summary.run.invalid_because
    cases = {c.name: c for c in summary.cases}
    both = [(c, cases[f"{name}-refilled"]) for name, c in cases.items() if c.rows == "lockstep"]
    assert len(both) == 4 and len(cases) == 8
    for one, other in both:
        traces = [store.trace(c.name) for c in (one, other)]
        assert traces[0].rows == traces[1].rows  # details too; times are not compared
        assert traces[1].about.in_turn and traces[1].about.batch == 2
        for field in ("tau", "survival", "accept_hist", "tokens", "cycles", "alpha_model"):
            assert getattr(one.metrics, field) == getattr(other.metrics, field), field
        (line,) = store.results(other.name)
        assert len(line.prompts) == 3 and line.compiles == 0
        spans = [sum(c.end - c.begin for c in row) for row in traces[1].rows]
        tpot = 1e3 * sum(spans) / other.metrics.tokens
        assert other.metrics.tpot_ms == pytest.approx(tpot) and other.metrics.ttft_ms is None
        assert 0 < line.prefill_seconds < line.seconds
        if other.is_plain:
            continue
        plain = cases[other.plain]
        assert plain.rows == "refilled" and other.predicted is not None
        assert other.speedup == pytest.approx(plain.metrics.tpot_ms / tpot)
        assert one.predicted is not None
        assert other.predicted.speedup == pytest.approx(one.predicted.speedup)
    # Of two rows the first two prompts of the lockstep batches, then one alone.
    plain = cases["jsonl-none-T0-b2"]
    assert plain.metrics.occupancy == pytest.approx(0.75)


def test_a_late_compilation_makes_a_run_invalid(
    place: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    real, calls = measure.generate, []

    def compiles_once(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 4:  # two warm up
            jax.jit(lambda x: x * 3 + len(calls))(jnp.zeros(17))
        return real(*args)

    monkeypatch.setattr(measure, "generate", compiles_once)
    config = config_of(place, temperatures=(0.0,), drafters=("ngram:3",), repeats=1)
    run(config, tmp_path / "run")
    store = Store(tmp_path / "run")
    summary = summarise(store)
    (because,) = summary.run.invalid_because
    assert not read(store.run_path)["valid"] and "compiled behind the warm-up" in because
    outputs.write(store, summary)
    assert f"> Not valid: {because}" in (store.path / "results.md").read_text()
    assert "not valid" in (store.path / "report.html").read_text()
    # Texts that differ between repeats are no measurement of one thing either.
    lines = store.case("jsonl-ngram-k3-greedy-T0-b2") / "results.jsonl"
    record = {**read_lines(lines)[0], "repeat": 1, "tokens_sha256": "other"}
    with lines.open("a") as file:
        file.write(json.dumps(record) + "\n")
    because = summarise(store).run.invalid_because
    assert any("repeats wrote different texts" in reason for reason in because)


def test_the_margin_where_texts_part(place: Path, finished: Path) -> None:
    target = specjax.load(place / "target")
    plain = trace_file.load(finished / "cases" / "jsonl-none-T0-b2" / "trace.jsonl")
    row = list(plain.rows[1])
    other = (row[4].emitted[0] + 1) % 272
    row[4] = row[4].__class__(row[4].position, (), 0, 1, (other,))
    ours = Trace((plain.rows[0], tuple(row), plain.rows[2]), plain.texts)
    tokens = [*plain.texts[1].prompt_tokens, *(c.emitted[0] for c in plain.rows[1][:4])]
    logits = np.asarray(
        target.net.head(target.net(jnp.asarray([tokens])).hidden)[0, -1], np.float32
    )
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


def test_synthetic_acceptance_is_realised(place: Path, tmp_path: Path) -> None:
    many = [{"prompt": "x = " + "1" * i} for i in range(16)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(p) + "\n" for p in many))
    config = config_of(
        place,
        mode="synthetic",
        curves=("2.2",),
        prompt_sets=(f"jsonl:{tmp_path / 'many.jsonl'}",),
        drafters=(f"{place / 'draft'}:3",),
        temperatures=(0.0,),
        batches=(16,),
        max_new_tokens=200,
        repeats=1,
    )
    run(config, tmp_path / "run")
    store = Store(tmp_path / "run")
    summary = summarise(store)
    plain, forced = summary.cases
    assert forced.synthetic is not None and forced.compare is not None
    curve = forced.synthetic.survival
    assert 1 + sum(curve) == pytest.approx(2.2) and forced.rule == "synthetic-greedy"
    num = forced.metrics.cycles
    assert num > 1000
    for found, wanted in zip(forced.metrics.survival, curve, strict=True):
        assert abs(found - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / num)
    # The same length on both sides, and a text that is nobody's.
    assert plain.metrics.tokens == forced.metrics.tokens == 16 * 200
    assert forced.compare.exact_match is None and forced.compare.same_lengths
    trace = store.trace(forced.name)
    assert "not the model's" in trace.setup["synthetic"]["note"]
    outputs.write(store, summary)
    for name in ("results.md", "results.tex"):
        assert "the text is not the model's: acceptance was" in (store.path / name).read_text()
    lookup = config | {"drafters": ("ngram:3",), "max_new_tokens": 12}
    with pytest.raises(ValueError, match="does not always guess 3 tokens"):
        run(lookup, tmp_path / "lookup")


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


def test_conversations_hold_the_targets_own_answers(
    place: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    speaks = shutil.copytree(place / "target", tmp_path / "target")
    settings = read(speaks / "tokenizer_config.json")
    settings["chat_template"] = (
        "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<a>{% if not think %}!{% endif %}{% endif %}"
    )
    (speaks / "tokenizer_config.json").write_text(json.dumps(settings))
    asked = tmp_path / "turns.jsonl"
    asked.write_text(json.dumps({"turns": ["ab", "cd"]}) + "\n" + json.dumps({"turns": ["e"]}))
    config = config_of(
        place,
        target=str(speaks),
        prompt_sets=(f"turns:{asked}",),
        template="chat",
        system="be",
        template_args=("think=False",),
        turns=0,
        max_new_tokens=4,
        temperatures=(0.0,),
    )
    store = Store(tmp_path / "run")
    prepared = job.prepare(config, store)
    target = specjax.load(speaks)
    first = "<s>be\n<u>ab\n<a>!"
    ids = target.tokenizer.encode(first, add_bos=False)
    answer = specjax.generate(target, None, ids, max_new_tokens=4).text[0]
    assert [(p.id, p.text) for p in prepared.prompts] == [
        ("turns/1", first),
        ("turns/1/2", f"<s>be\n<u>ab\n<a>{answer}\n<u>cd\n<a>!"),
        ("turns/2", "<s>be\n<u>e\n<a>!"),
    ]
    assert prepared.run.thinking == {"think": False} and prepared.run.system == "be"
    monkeypatch.setattr(job.api, "generate", None)  # the answers are kept
    again = job.prepare(config, store)
    assert again.run.prompts_sha256 == prepared.run.prompts_sha256
    thinking = job.prepare(config | {"template_args": ("think=True",), "turns": 1}, store)
    assert thinking.run.prompts_sha256 != prepared.run.prompts_sha256
