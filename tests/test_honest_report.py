"""A real run's report: the pooled row first, the same marks everywhere, and curves that are drawn.

The run is small and real. Where a test needs a busy machine, or times that cannot be, what it
changes are the numbers that a machine decides.
"""

from __future__ import annotations

import dataclasses
import html
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import made_traces
import numpy as np
import pytest
from rich.console import Console
from tiny_checkpoint import write_tiny

from configs.benchmark import get_config
from specjax.jobs import benchmarking
from specjax.lab.bench import job, measure, outputs
from specjax.lab.bench.store import Store
from specjax.lab.bench.summary import mean_slots, summarise
from specjax.lab.costs.cost_model import predict, survival_of
from specjax.lab.costs.pooled import pool
from specjax.lab.records.case import Case, Comparison, Figures, read_case
from specjax.lab.records.codec import to_json
from specjax.lab.records.costs import costs_at, load
from specjax.lab.records.run import Run, Summary
from specjax.lab.view import marks
from specjax.lab.view import summary as after_generation
from specjax.lab.view.cases import best_of
from specjax.lab.view.gallery import pictures
from specjax.lab.view.headline import headline
from specjax.lab.view.result import read_result
from specjax.session.slots import Passes
from specjax.trace import trace_file
from specjax.trace.metrics import METRICS
from specjax.trace.trace import Cycle, Text, Trace

SETS = {"jsonl": ["def area(", "x = 1\n", "def naïve(é):"], "turns": ["import os\n"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prompt sets, the second of one prompt; a drafter at two k, and prompt lookup."""
    path = tmp_path_factory.mktemp("honest")
    write_tiny(path / "target")
    write_tiny(path / "draft", noise=0.05)
    (path / "jsonl.jsonl").write_text(
        "".join(json.dumps({"prompt": p}) + "\n" for p in SETS["jsonl"])
    )
    (path / "turns.jsonl").write_text(json.dumps({"turns": SETS["turns"]}) + "\n")
    config = get_config().to_dict() | {
        "target": str(path / "target"),
        "drafters": (f"{path / 'draft'}:2", f"{path / 'draft'}:3", "ngram:3"),
        "prompt_sets": tuple(f"{name}:{path / name}.jsonl" for name in SETS),
        "num_prompts": 0,
        "temperatures": (0.0,),
        "batches": (1,),
        "max_new_tokens": 12,
        "repeats": 1,
    }
    store = Store(path / "run")
    prepared = job.prepare(config, store)
    store.begin(prepared.run, prepared.prompts)
    measure.measure(prepared, store)
    measure.calibrate(prepared, store, repeats=1)
    return store.path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(finished, tmp_path / "run"))


def printed(summary: Summary, width: int = 250) -> str:
    out = io.StringIO()
    benchmarking.show(Console(file=out, width=width), summary)
    return out.getvalue()


def test_the_pooled_row_comes_first_everywhere(run: Store) -> None:
    summary = summarise(run)
    outputs.write(run, summary)
    # By hand: all prompts of both sets, all tokens over all time.
    ratios = {}
    for row in summary.pooled:
        if row.is_plain:
            continue
        assert row.compare is not None and row.over is not None
        sums = np.zeros((2, 2))  # ours, plain: seconds, tokens
        for case in summary.cases:
            if (case.drafter, case.num_draft) == (row.drafter, row.num_draft):
                for i, name in enumerate((case.name, case.plain)):
                    trace = run.trace(name)
                    ends = [r[-1].end - t.prefilled for r, t in zip(trace.rows, trace.texts)]
                    sums[i] += sum(ends), trace.num_committed
        (a, b), (c, d) = sums
        ratios[row.name] = (c / d) / (a / b)
        assert row.speedup == pytest.approx(ratios[row.name])
        assert row.over.prompts == 4 and row.over.prompt_sets == ("jsonl", "turns")
        assert row.speedup_interval is not None
        low, high = row.speedup_interval
        assert low <= ratios[row.name] <= high
    told = best_of(summary.pooled)  # not what a noisy clock made faster than it can be
    assert told is not None
    speedup = ratios[told.name]
    first, best = headline(summary)
    assert first.startswith("Over all 4 prompts of 2 sets (jsonl, turns), T = 0, batch 1: ")
    assert f": {speedup:.2f}x [" in first and "the fastest of 3 methods" in first
    assert best.startswith("Best cell of 6, chosen after measuring: ")
    shown = printed(summary)
    assert shown.splitlines()[0] == first and shown.splitlines()[1] == best
    assert outputs.remarks(summary.run, summary.rows)[-1] in shown
    text = (run.path / "results.md").read_text()
    assert text.splitlines()[0] == first
    latex = (run.path / "results.tex").read_text()
    assert latex.splitlines()[0] == f"% {first}"
    page = (run.path / "report.html").read_text()
    lead = re.search(r'<p class="lead">(.*?)</p>', page)
    assert lead is not None and html.unescape(lead[1]) == first
    assert page.index(html.escape(best)) < page.index('class="tile"')
    lines = (run.path / "results.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines[1:5]] == [r.name for r in summary.pooled]
    # The pooled rows are the first group of every table.
    assert shown.index("all 4 prompts of 2 sets") < shown.index("jsonl, T = 0, batch 1\n".strip())


def test_a_prompt_is_drawn_with_all_its_settings() -> None:
    """Four cells of one prompt are no four prompts; rules that follow from T are one method."""
    traces = {"p": made_traces.plain(rows=1), "d": made_traces.speculative(rows=1)}
    cases = []
    for temperature, rule in ((0.0, "greedy"), (1.0, "block")):
        for name, drafter, k in (("p", "none", 0), ("d", "x", 4)):
            cases.append(
                Case(
                    name=f"{name}-{rule}",
                    plain=f"p-{rule}",
                    drafter=drafter,
                    num_draft=k,
                    prompt_set="s",
                    temperature=temperature,
                    batch=1,
                    rule=rule,
                    metrics=Figures(),
                    compare=Comparison(speedup=1.0) if k else None,
                )
            )
    _, row = pool(cases, lambda name: traces[name[0]])
    assert row.over is not None and row.over.prompts == 1 and row.metrics.requests == 1
    assert row.compare is not None
    assert row.compare.speedup_interval is None and row.rule == "greedy, block"
    assert row.metrics.tau == pytest.approx(traces["d"].tau)
    twice = [*cases, dataclasses.replace(cases[1], name="d-token", rule="token")]
    rules = [r.rule for r in pool(twice, lambda name: traces[name[0]])]
    assert rules == ["greedy, block", "greedy", "block", "token"]
    assert pool(cases[:2], lambda name: traces[name[0]]) == []  # pooled already
    # The same prompts in rows that change hands are no further evidence.
    refilled = [dataclasses.replace(c, rows="refilled") for c in cases]
    assert pool([*cases, *refilled], lambda name: traces[name[0]])[1] == row
    assert len(pool(refilled, lambda name: traces[name[0]])) == 2


def test_what_cannot_be_is_not_quoted() -> None:
    """A case faster than its tau is the best of none, unless there are no others."""
    made = lambda name, speedup, tau: Case(
        name=name,
        drafter="x",
        num_draft=4,
        metrics=Figures(tau=tau),
        compare=Comparison(speedup=speedup),
    )
    sane, odd = made("sane", 1.5, 2.0), made("odd", 2.5, 2.0)
    assert best_of([sane, odd]) is sane and best_of([odd]) is odd


def test_slots_of_a_call_begin_anew() -> None:
    """Of a set of many calls, in each of which the caches begin small."""
    row = lambda tokens, start: tuple(
        Cycle(position, (0,), 0, 1, (0,), None, start + i, start + i + 1.0)
        for i, position in enumerate(range(tokens, tokens + 3))
    )
    sizes = [600, *[4] * 31]  # one long prompt, in the first of two calls of a row each
    rows = tuple(row(size, 10.0 * i) for i, size in enumerate(sizes))
    texts = tuple(Text((1,) * size, prefilled=0.0) for size in sizes)
    trace = Trace(rows=rows, texts=texts, setup={"num_draft": 1, "batch": 1, "in_turn": True})
    slots_at = Passes().slots_at
    large, small = slots_at(600, 602, 1), slots_at(4, 6, 1)
    assert large > small and mean_slots(trace, 1) == (large + small) // 2


def provoke(store: Store) -> Summary:
    """The run on a busy machine, with times and costs that cannot be."""
    run = store.read_run()
    store.write_run(dataclasses.replace(run, load=(3.25,), others=(1.5,), left_out=2))
    for case in run.cases:
        trace = store.trace(case.name)
        step = {"none": 1.0}.get(case.drafter, 1.0 + 0.5 * (case.prompt_set == "jsonl"))
        if case.drafter == "ngram":
            step = 0.4  # a cycle takes less than a plain step
        rows = []
        for b, (row, text) in enumerate(zip(trace.rows, trace.texts)):
            # Some prompts slower, others faster, so that the interval holds 1.
            each = step * (1 + (0.9 if b == 1 else -0.4) * (case.drafter == "draft"))
            at = text.prefilled
            rows.append(
                tuple(
                    dataclasses.replace(c, begin=at + j * each, end=at + (j + 1) * each)
                    for j, c in enumerate(row)
                )
            )
        path = store.case(case.name) / "trace.jsonl"
        trace_file.save(dataclasses.replace(trace, rows=tuple(rows)), path)
    known = load(store.path / "costs.json")
    noisy = tuple(dataclasses.replace(c, noise=0.5) for c in known.costs)
    dataclasses.replace(known, costs=noisy).save(store.path / "costs.json")
    return summarise(store)


def test_the_same_marks_stand_in_the_terminal_the_tables_and_the_page(run: Store) -> None:
    summary = provoke(run)
    outputs.write(run, summary)
    found = marks.marks(summary.run, summary.rows)
    kinds = {mark.kind for mark in found}
    kind = marks.Kind
    assert kinds >= {
        *(kind.BUSY, kind.LEFT_OUT, kind.ONE_PROMPT, kind.SPANS_ONE),
        *(kind.ABOVE_TAU, kind.NEGATIVE_OVERHEAD, kind.ROUGH_COSTS),
    }
    lines = marks.lines(found)
    assert "load 3.25 before, other processes took 1.5 cores" in lines[0]
    terminal = printed(summary, 1000)
    markdown = (run.path / "results.md").read_text().replace("\\", "")
    page = html.unescape((run.path / "report.html").read_text())
    latex = (run.path / "results.tex").read_text()
    for line in lines:
        for writer in (terminal, markdown, page, latex):
            assert line in writer, line
    # Each case's row names its marks, and no other row does.
    rows = {c.name: marks.words(c) for c in summary.cases}
    assert "one prompt" in rows["turns-ngram-k3-greedy-T0-b1"]
    assert "one prompt" not in rows["jsonl-ngram-k3-greedy-T0-b1"]
    assert "speedup above tau, negative overhead" in rows["jsonl-ngram-k3-greedy-T0-b1"]
    for words in rows.values():
        for writer in (terminal, markdown, page, latex):
            assert words in writer
    whole = dataclasses.replace(summary.run, load=(0.1,), others=(0.2,), left_out=0)
    assert not marks.marks(whole, []), "nothing is marked without a reason"


def test_a_speed_that_is_printed_has_the_marks_of_the_machine() -> None:
    records = [{"cycles": [[2, 1, 2]]}]
    rough = {"load": [3.25], "others": [1.5]}

    def printed(**fields: Any) -> str:
        out = io.StringIO()
        console = Console(file=out, width=400, highlight=False)
        after_generation.summary(console, after_generation.Report(records, **fields))
        return out.getvalue()

    (told,) = marks.lines(list(marks.of_run(Run(load=(3.25,), others=(1.5,)))))
    assert "Busy machine: " in told and told in printed(tokens=9, seconds=1.0, **rough)
    assert "note" not in printed(tokens=9, seconds=1.0, load=[0.1], others=[0.2])
    assert "note" not in printed(**rough), "no times are shown"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"compare": {"speedup": 1.2, "speedup_interval": [1.0, 1.4]}}, marks.Kind.SPANS_ONE),
        ({"compare": {"speedup": 1.2, "speedup_interval": [1.001, 1.4]}}, None),
        ({"compare": {"speedup": 0.8, "speedup_interval": [0.7, 0.99]}}, None),
        ({"compare": {"speedup": 2.01}}, marks.Kind.ABOVE_TAU),
        ({"compare": {"speedup": 2.0}}, None),
        ({"metrics": {"tau": 2.0, "requests": 1}}, marks.Kind.ONE_PROMPT),
        ({"mode": "synthetic"}, marks.Kind.SYNTHETIC),
        ({"compare": {"exact_match": 0.5, "first_diff": [1, 7]}}, marks.Kind.TEXTS_DIFFER),
    ],
)
def test_what_is_marked(change: dict[str, Any], kind: marks.Kind | None) -> None:
    case = {"name": "x", "drafter": "d", "metrics": {"tau": 2.0, "requests": 9}, **change}
    assert [m.kind for m in marks.of_case(read_case(case))] == ([] if kind is None else [kind])


def test_the_predicted_curve_and_that_of_one_alpha_are_drawn(run: Store) -> None:
    summary = summarise(run)
    result = read_result(run.path)
    cases = {c.name: c for c in summary.cases}
    costs = [c for c in load(run.path / "costs.json").costs if c.drafter == "draft"]
    drawn = [p for p in pictures(result) if p.name.startswith("speedup")]
    assert len(drawn) == 2, "one of each prompt set"
    for picture, prompt_set in zip(drawn, SETS):
        assert "solid line is predicted" in picture.caption
        (ax,) = picture.figure().axes
        lines = {line.get_label(): line for line in ax.lines}
        case = cases[f"{prompt_set}-draft-k3-greedy-T0-b1"]
        told = case.predicted
        assert told is not None
        at = costs_at(costs, batch=1, context=told.context)
        found = case.metrics
        want = predict(survival_of(found.accept_hist, 3), at, [2, 3], alpha=found.alpha_hat)
        assert list(lines["predicted"].get_xdata()) == [2, 3]
        assert list(lines["predicted"].get_ydata()) == pytest.approx(list(want.speedup))
        single = list(lines["single alpha"].get_ydata())
        assert single == pytest.approx(list(want.single_alpha_speedup))
        assert list(lines["tau (costs nothing)"].get_ydata()) == pytest.approx(list(want.tau))
        ranged = "measured, 95 % interval" in lines
        assert ranged == (len(SETS[prompt_set]) > 1)
    record = to_json(cases["jsonl-draft-k3-greedy-T0-b1"])
    with pytest.raises(ValueError, match=r"Case jsonl-draft.*: predicted has no 'speedup'"):
        read_case({**record, "predicted": {"speed": 1}})


def shape(value: Any) -> Any:
    """The names of fields, as deep as they go; of a list those of its members together."""
    if isinstance(value, dict):
        return {k: shape(v) for k, v in value.items() if k not in OPEN}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        merged: dict[str, Any] = {}
        for one in value:
            merged |= {k: v for k, v in one.items() if v is not None or k not in merged}
        return shape(merged)
    return None


# Fields whose keys are data, or depend on the machine and the trace.
OPEN = (
    *("accept_hist", "per_category", "config", "target", "prompt_sets", "thinking", "cases"),
    "checkpoints",
)


def test_what_tests_make_by_hand_has_the_fields_of_a_real_run(run: Store, tmp_path: Path) -> None:
    """Else a reader of fields that nobody writes would pass its test."""
    summarise(run)
    real = json.loads((run.path / "metrics.json").read_text())
    made = json.loads(
        (made_traces.result_directory(tmp_path / "made") / "metrics.json").read_text()
    )
    # What an earlier test of this process has registered stands in it by its file.
    versions = real["run"]["versions"]
    real["run"]["versions"] = {k: v for k, v in versions.items() if not k.endswith(".py")}
    assert shape(made) == shape(real)
    assert shape(made["cases"]) == shape(real["cases"])


def test_the_definitions_are_those_of_the_columns(run: Store) -> None:
    summary = summarise(run)
    outputs.tables(run.path, summary)
    header = (run.path / "results.csv").read_text().splitlines()[0].split(",")
    flat = {re.sub(r"(_\d+)+$", "", name) for name in header}
    absent = set(METRICS) - flat - {"peak_bytes", "experts", "experts_expected"}  # of mixtures
    assert not absent, "defined, and never written"
