"""Curves, forced acceptance, generated documents, and what experiments.benchmark refuses."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripts import invoke, script
from tiny_checkpoint import write_tiny

from specjax import verify
from specjax.core.compiles import Compiles
from specjax.core.types import Proposal
from specjax.lab.bench.documents import document, render
from specjax.lab.bench.synthetic import Forced, from_lengths, parse_curve
from specjax.lab.records.case import Case, Comparison, Figures
from specjax.lab.records.prediction import Predicted
from specjax.lab.records.run import Run, Summary, Target
from specjax.trace.replay import parse_stop
from specjax.verify.base import VerifyKeys

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", sorted(verify.RULES))
def test_forced_acceptance(name: str) -> None:
    """Survival is the curve, whatever the laws; accepted guesses and one own token come out."""
    inner, vocab, num = verify.get(name), 7, 4000
    survival = (0.9, 0.5, 0.45, 0.0)
    rule = Forced(inner, survival)
    assert rule.name == f"synthetic-{name}" and rule.takes == inner.takes
    assert hash(rule) == hash(Forced(inner, survival)) and rule != Forced(inner, (0.1,) * 4)
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(5, vocab)), jnp.float32)
    q = jax.nn.softmax(jnp.asarray(rng.normal(size=(4, vocab)), jnp.float32))
    guesses = jnp.asarray([3, 1, 4, 1], jnp.int32)
    proposal = Proposal(guesses, q if "sampled" in inner.takes else None)

    def draw(key: Any) -> Any:
        accept, residual, *noise = jax.random.split(key, 7)
        keys = VerifyKeys(accept, residual, jnp.stack(noise))
        law = rule.law(logits, proposal)
        return rule.sample(keys, law), inner.sample(keys, law)

    forced, real = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(1), num))
    count = np.asarray(forced.num_accepted)
    for i, wanted in enumerate(survival, 1):
        error = abs((count >= i).mean() - wanted)
        assert error <= 4 * math.sqrt(wanted * (1 - wanted) / num)
    tokens, own = np.asarray(forced.tokens), np.asarray(real.tokens)
    for row, n, theirs, m in zip(tokens, count, own, np.asarray(real.num_accepted)):
        assert row[:n].tolist() == guesses[:n].tolist() and row[n] == theirs[m]
    # The coin is not the rule's own: what it accepts says nothing about what this does.
    if len(set(np.asarray(real.num_accepted))) > 1:
        assert abs(np.corrcoef(count, np.asarray(real.num_accepted))[0, 1]) < 0.1


def test_a_missing_guess_is_never_committed() -> None:
    rule = Forced(verify.get("greedy"), (1.0, 1.0))
    proposal = Proposal(jnp.asarray([2, -1], jnp.int32), None)
    keys = VerifyKeys(jax.random.key(0), jax.random.key(1), jax.random.split(jax.random.key(2), 3))
    verdict = rule.sample(keys, rule.law(jnp.eye(3, 5), proposal))
    assert int(verdict.num_accepted) == 2 and int(verdict.tokens.min()) >= 0


@pytest.mark.parametrize(
    ("lengths", "survival"),
    [
        ((1.8, 2.5, 3.0), (0.8, 0.7, 0.5)),
        ((1.8, 2.5, 2.4, 2.6), (0.8, 0.7, 0.0, 0.0)),  # falls, and stays down
        ((1.5, 2.2), (0.5, 0.5)),  # rises more than before
        ((2.4,), (1.0,)),
    ],
)
def test_curves_from_lengths(lengths: tuple[float, ...], survival: tuple[float, ...]) -> None:
    assert from_lengths(lengths) == pytest.approx(survival)


def test_curves_from_a_number() -> None:
    for k in (1, 2, 5, 9):
        curve = parse_curve("1.9").survival(k)
        assert 1 + math.fsum(curve) == pytest.approx(1.9)
        ratios = [b / a for a, b in itertools.pairwise(curve)]
        assert ratios == pytest.approx([curve[0]] * (k - 1))
    at = parse_curve("1.9@2")
    assert at.survival(5)[:2] == pytest.approx(parse_curve("1.9").survival(2))
    assert parse_curve("1").survival(3) == pytest.approx((0, 0, 0))
    assert parse_curve("4").survival(3) == pytest.approx((1, 1, 1))


def test_published_curves(shared: Path) -> None:
    """Where acceptance lengths fall, tau exceeds the last of them, and both are told."""
    where = shared / "data" / "golden_al"
    curve = parse_curve(f"{where}/dsv4-pro-0813-dspark.yaml")
    told = curve.record(8)
    assert told.tau_source == 3.47 and told.tau == pytest.approx(3.77)
    mtp = parse_curve(f"{where}/qwen3.5_mtp.yaml:qwen3.5-397b-a17b-nvfp4:thinking_on")
    assert mtp.record(3).tau == pytest.approx(3.39)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5", "at least 1 token"),
        ("nan", "at least 1 token"),
        ("5@3", "tau=5 with k=3: a cycle commits 1 to 4"),
        ("fast", "write a tau"),
        ("/no/such.yaml", "no such file"),
        ("{good}", "which mode[?] It has a, b: add :mode"),
        ("{good}:x", "no model 'x'; it has m"),
        ("{good}:m:c", "no mode 'c'; it has a, b"),
        ("{good}:m:b", "no acceptance lengths"),
        ("{good}:m:a:z", "'z' is more than"),
        ("/no/such:case", "no such file; name the directory"),
    ],
)
def test_curves_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    good = tmp_path / "good.yaml"
    good.write_text("m:\n  a: {1: 1.5}\n  b: {2: 1.5}\n")
    with pytest.raises(ValueError, match=message):
        parse_curve(text.format(good=good))
    with pytest.raises(ValueError, match=r"k=2, but good:m:a is known up to k=1"):
        parse_curve(f"{good}:m:a").survival(2)
    with pytest.raises(ValueError, match="stop_rules holds 'sure:2'"):
        parse_stop("sure:2")


def test_compiles_are_counted() -> None:
    @jax.jit
    def program(x: Any) -> Any:
        return x + 1

    inputs = jnp.zeros(3), jnp.zeros(4)
    count = Compiles()
    for _ in range(2):
        program(inputs[0])
    assert count.count == 1 and count.seconds > 0
    program(inputs[1])
    assert count.count == 2 and Compiles().count == 0


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: Any) -> Iterator[Call]:
    """The script on a tiny target, in this process: (exit status, stdout, stderr)."""
    write_tiny(tmp_path / "target")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "one.jsonl").write_text('{"prompt": "x = 1"}\n')
    module = script("benchmark")

    def call(*arguments: str, config: bool = True) -> tuple[int, str, str]:
        line = ["benchmark"]
        if config:
            line += [f"--config={ROOT}/configs/benchmark.py:quick"]
            line += [f"--config.target={tmp_path / 'target'}", "--config.drafters=('ngram:3',)"]
            line += ["--config.compilation_cache=", f"--workdir={tmp_path / 'run'}"]
            line += [f"--config.prompt_sets=('jsonl:{tmp_path / 'one.jsonl'}',)"]
            line += ["--config.num_prompts=0", "--config.max_new_tokens=8"]
        line += [a.replace("TMP", str(tmp_path)) for a in arguments]
        return invoke(module, capsys, *line)

    yield call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.prompt_sets=('spec_bench:x',)"], "No prompt set 'spec_bench'"),
        (["--config.prompt_sets=('jsonl:TMP/empty.jsonl',)"], "is empty"),
        (["--config.prompt_sets=('builtin','builtin')"], "each once"),
        (["--config.drafters=('ouija',)"], "ouija"),
        (["--config.drafters=('dflash',)"], "needs a checkpoint"),
        (["--config.drafters=('none',)"], "plain decoding is part of every run"),
        (["--config.drafters=('ngram:3','ngram:3')"], "name each once"),
        (["--config.rules=('maybe',)"], "no verification rule 'maybe'"),
        (["--config.rules=('greedy',)", "--config.temperatures=(1.0,)"], "temperature 0 only"),
        (["--config.rules=('token',)", "--config.options=('top_q=1',)"], "Unknown option 'top_q'"),
        (["--config.options=('top_k',)"], "write NAME=VALUE"),
        (["--config.batches=(0,)"], "batches holds 0"),
        (["--config.max_new_tokens=300"], "the model's limit of 256"),
        (["--config.template=chat"], "has no chat template"),
        (["--config.system=be"], "set template=chat"),
        (["--config.mode=guess"], "mode='guess': one of measure"),
        (["--config.mode=synthetic"], "needs curves"),
        (["--config.mode=synthetic", "--config.curves=('9',)"], "tau=9 with k=3"),
        (["--config.mode=replay", "--config.temperatures=(1.0,)"], "replay is greedy"),
        (["--config.mode=replay", "--config.stop_rules=('x',)"], "stop_rules holds 'x'"),
        (["--config.mode=predict"], "needs costs"),
        (["--config.mode=predict", "--config.costs=TMP/no"], "no such file of costs"),
        (["--report_only"], "holds no benchmark run"),
        (["--compare=TMP/a,TMP/b"], "holds no benchmark run"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    run: Call, tmp_path: Path, arguments: list[str], message: str
) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_block_has_so_many_guesses(run: Call) -> None:
    status, _, err = run("--config.target=demo:target", "--config.drafters=('demo:dflash:8',)")
    assert status == 2 and "demo:dflash" in err and "k=8" in err and err.count("\n") == 1


def test_from_the_command_line(run: Call, tmp_path: Path) -> None:
    status, out, err = run("--config.calibrate=1")
    assert (status, err) == (0, "") and "plain decoding" in out
    assert "measured over predicted speedup:" in out and "100 %" in out
    report = (tmp_path / "run" / "report.html").read_bytes()
    (tmp_path / "run" / "report.html").unlink()
    assert run("--report_only", f"--workdir={tmp_path / 'run'}", config=False)[0] == 0
    assert (tmp_path / "run" / "report.html").read_bytes() == report
    both = (f"--compare={tmp_path / 'run'},{tmp_path / 'run'}", f"--workdir={tmp_path / 'both'}")
    status, out, _ = run(*both, config=False)
    assert status == 0 and out.count("\n  plain decoding") == 2
    assert (tmp_path / "both" / "report.html").exists() and (tmp_path / "both/results.md").exists()
    assert run(*both[:1], f"--workdir={tmp_path / 'run'}", config=False)[0] == 2
    _, out, _ = run(
        *("--config.mode=predict", f"--config.costs={tmp_path / 'run'}"),
        *("--config.curves=('2.0@3',)", f"--workdir={tmp_path / 'forecast'}"),
    )
    (record,) = json.loads((tmp_path / "forecast" / "forecast.json").read_text())
    assert f"{record['speedup'][0]:.2f}x" in out


def stored(tmp_path: Path) -> Path:
    case = Case(
        name="a",
        prompt_set="builtin",
        drafter="ngram",
        num_draft=4,
        rule="greedy",
        temperature=0.0,
        batch=1,
        mode="measure",
        metrics=Figures(tau=2.5, survival=(0.8, 0.7), tpot_ms=2.0),
        compare=Comparison(speedup=1.5, speedup_interval=(1.4, 1.6)),
        predicted=Predicted(
            speedup=1.6,
            measured_over_predicted=0.9375,
            single_alpha_speedup=1.8,
            best_k=4,
            context=256,
            plain_step_ms=2.0,
            **dict.fromkeys(("cost_draft", "cost_verify", "cost_rest"), 0.5),
            **dict.fromkeys(("share_draft", "share_verify", "share_rest"), 0.3),
        ),
    )
    run = Run(
        mode="measure",
        target=Target("demo:target"),
        dtype="bfloat16",
        device="cpu cpu",
        num_prompts=3,
        prompt_sets={"builtin": "0"},
        load=(0.1, 3.5),
        template="none",
        prompts_sha256="f" * 64,
    )
    other = dataclasses.replace(case, name="b", temperature=1.0, drafter="other")
    (tmp_path / "demo").mkdir()
    Summary(run, (case, other)).save(tmp_path / "demo" / "metrics.json")
    rows = {"rows": [{"k": 1, "ms": 2.345}, {"k": 2, "ms": None}], "name": "x"}
    (tmp_path / "device.json").write_text(json.dumps(rows))
    return tmp_path


def test_documents_are_made_of_results(tmp_path: Path) -> None:
    results = stored(tmp_path)
    made = render(
        '# A\n{{ results("demo", temperature=0) }}\n'
        'b {{ value("device.json", "rows.0.ms", ".1f") }} c\n',
        results,
    )
    assert made.startswith("# A\n") and made.endswith("b 2.3 c\n")
    assert "| ngram | 4 | greedy |" in made and "other" not in made and "ffffffffffffffff" in made
    assert "Busy machine: the machine was not idle (load 3.5 before): times are rough." in made
    rows = render('{{ rows("device.json", "rows", "k,ms:.1f") }}', results)
    assert rows == "| k | ms |\n| --- | --- |\n| 1 | 2.3 |\n| 2 |  |"
    predictions = render('{{ predictions("demo", drafter="ngram") }}', results)
    assert "| ngram | 4 | 0 | 1 | 1.50x | 1.60x | 0.94 | 1.80x |" in predictions


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{{ results("nowhere") }}', "line 2: .*no such results"),
        ('{{ results("demo", batch=7) }}', "line 2: no case of demo has batch=7"),
        ('{{ results("demo", speed=7) }}', "line 2: 'speed=7': write KEY=VALUE"),
        ('{{ rows("device.json", "name", "k") }}', "line 2: .* is no list of objects"),
        ('{{ rows("device.json", "rows", "z") }}', "line 2: no row has the column 'z'"),
        ('{{ value("device.json", "rows.7") }}', "line 2: there is nothing at rows.7"),
        ('{{ value("device.json", "name", ".1f") }}', "line 2: 'x' cannot be written"),
    ],
)
def test_documents_that_cannot_be_made(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(f"# A\n{line}\n", stored(tmp_path))


@pytest.mark.parametrize("page", ["benchmarks", "targets", "pods"])
def test_a_page_is_made_of_its_template(page: str) -> None:
    """Edit docs/benchmarks.in.md, then run python -m experiments.benchmark_docs."""
    made = document(ROOT / "docs" / f"{page}.in.md", ROOT / "docs" / "results")
    assert (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") == made
