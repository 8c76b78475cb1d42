"""experiments.benchmark in its other ways: kept targets, refilled rows, curves, conversations."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from tiny_benchmark import config_of, make_place, read, run

import specjax
from specjax.jobs import benchmarking
from specjax.lab.bench import job, measure, outputs
from specjax.lab.bench.store import Store
from specjax.lab.bench.summary import summarise
from specjax.runs.lines import read as read_lines


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("benchmark"))


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
    for one in runs:
        plain, guessing = one["cases"]
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
        # Times are not compared; probabilities, which widths of passes round, to 1e-5.
        told = [[c for row in trace.rows for c in row] for trace in traces]
        cycles = [[dataclasses.replace(c, detail=None) for c in each] for each in told]
        assert cycles[0] == cycles[1]
        details = ([c.detail for c in each if c.detail is not None] for each in told)
        for a, b in zip(*details, strict=True):
            assert a.rank == b.rank and a.q == pytest.approx(b.q, rel=1e-5)
            assert (*a.p, *a.p_emitted) == pytest.approx((*b.p, *b.p_emitted), rel=1e-5)
        assert traces[1].about.in_turn and traces[1].about.batch == 2
        for field in ("tau", "survival", "accept_hist", "tokens", "cycles"):
            assert getattr(one.metrics, field) == getattr(other.metrics, field), field
        alphas = [case.metrics.alpha_model for case in (one, other)]
        assert alphas[0] == alphas[1] or alphas[0] == pytest.approx(alphas[1], rel=1e-5)
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
