"""examples/: methods in one file each, used by name, as a file outside the repository is."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_checkpoint import write_tiny

import specjax
from specjax import jobs
from specjax.checkpoint.drafters.export import save_drafter
from specjax.checkpoint.drafters.named import parse
from specjax.core import own
from specjax.core.cache.ring import Ring
from specjax.drafters.registry import DRAFTERS
from specjax.lab.audit.targets import random_model
from specjax.models import FAMILIES
from specjax.train.config import DataConfig, DrafterConfig, EvalConfig
from specjax.train.objectives import OBJECTIVES

EXAMPLES = Path(__file__).parent.parent / "examples"
PARD, SUFFIX = f"{EXAMPLES}/pard.py:Pard", f"{EXAMPLES}/suffix_decoding.py:Suffix"
ASK: dict[str, Any] = {"max_new_tokens": 24}
WINDOW = 12


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    """What the files register is forgotten: other tests go over the registries."""
    tables: list[dict[str, Any]] = [DRAFTERS, FAMILIES, OBJECTIVES]
    before = [dict(table) for table in tables]
    yield
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_an_example_imports_extend_alone(path: Path) -> None:
    nodes = ast.walk(ast.parse(path.read_text()))
    found = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    nodes = ast.walk(ast.parse(path.read_text()))
    found |= {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    library = {name for name in found if name and name.split(".")[0] not in sys.stdlib_module_names}
    assert library <= {"jax", "jax.numpy", "numpy", "specjax.extend"} and "specjax.extend" in found


def test_suffix_decoding_guesses_what_most_often_followed() -> None:
    spec = parse(f"{SUFFIX}:4").load(tiny.model())

    def guess(text: list[int]) -> list[int]:
        slots = jnp.array(text + [9] * (40 - len(text)), jnp.int32)  # 9: stale
        return spec.guess(slots, jnp.int32(len(text))).tolist()

    often, late = [1, 2, 3, 5], [1, 2, 4, 6]
    assert guess(often + often + late + [1, 2]) == [3, 5, 1, 2]  # twice, though not last
    # A longer match, seen once, is worth more guesses than a short one that is often right.
    assert guess([7, *late, *often, *often, 7, 1, 2]) == [4, 6, 1, 2]
    assert guess([8, 5, 8]) == [5, 8, -1, -1]  # a match of one token: two guesses
    assert guess([1, 2, 3]) == [-1] * 4
    target = tiny.model()
    prompts = tiny.prompts(3)
    out = specjax.generate(target, f"{SUFFIX}:4", prompts, **ASK)
    assert out.tokens == specjax.generate(target, None, prompts, **ASK).tokens
    assert out.trace.setup["family"] == "lookup" and out.tau > 1.1
    checks = ["guesses", "texts", "state"]
    assert specjax.audit(f"{SUFFIX}:2", texts=500, checks=checks).passed


def write_windowed(path: Path, **changes: Any) -> Path:
    write_tiny(path, noise=changes.pop("noise", 0.0))
    raw = json.loads((path / "config.json").read_text())
    raw |= {"model_type": "windowed", "sliding_window": WINDOW} | changes
    (path / "config.json").write_text(json.dumps(raw))
    return path


def test_a_windowed_family_is_target_and_draft(tmp_path: Path) -> None:
    own.run(EXAMPLES / "windowed_family.py")  # --import
    target = specjax.load(write_windowed(tmp_path / "target"))
    assert specjax.load(f"{EXAMPLES}/windowed_family.py:Windowed:{tmp_path}/target").config == (
        target.config
    )
    draft = specjax.load(write_windowed(tmp_path / "draft", noise=0.05))
    save_drafter(specjax.drafters.LM(draft), tmp_path / "saved", format="hf", target=target)
    assert specjax.load(tmp_path / "saved").config == draft.config
    assert target.net.init_cache(1, 512).layers[0].keys.shape[2] == WINDOW - 1
    wide = specjax.load(write_windowed(tmp_path / "wide", layer_types=["full_attention"]))
    assert wide.net.init_cache(1, 512).layers[0].keys.shape[2] == 512

    # One layer: a token hears of the 11 before it and of nothing else.
    text = np.arange(40)[None] + 1
    one = tiny.full_logits(target, text)
    for place, heard in ((39 - WINDOW, False), (40 - WINDOW, True)):
        other = text.copy()
        other[0, place] = 99
        same = np.array_equal(one[0, -1], tiny.full_logits(target, other)[0, -1])
        assert same != heard
    out = specjax.generate(target, specjax.drafters.LM(draft, 3), "def area(", **ASK)
    assert out.tokens == [tiny.greedy_reference(target, target.tokenizer.encode("def area("), 24)]
    assert out.tau > 1.5
    assert specjax.audit(target=target, checks=["entries", "stale", "widths"]).passed
    # The class alone is audited with a window, too.
    small = random_model(own.find(f"{EXAMPLES}/windowed_family.py:Windowed"))
    assert [type(e) for e in small.net.init_cache(2, 64).layers] == [Ring, Ring]


def test_pard_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    target = specjax.load(write_tiny(tmp_path / "target"))
    texts = specjax.generate(target, None, [[i] for i in range(1, 9)], max_new_tokens=40)
    rows = [{"tokens": [i, *t], "prompt_tokens": 1} for i, t in enumerate(texts.tokens, 1)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DrafterConfig(
        kind=PARD,
        target=str(tmp_path / "target"),
        init="",
        num_draft=3,
        sizes={"hidden": 32},
        objective={"keep": 0.8},
        data=DataConfig((str(data),), (str(data),), 48),
        eval=EvalConfig(rows=4, prompts=3, prompt_tokens=8, max_new_tokens=24),
        optimizer="adamw",
        peak_lr=2e-2,
        warmup_steps=2,
        weight_decay=0.0,
        clip_norm=1.0,
        steps=30,
        rows=8,
        accumulate=1,
        seed=0,
        log_every=10,
        eval_every=30,
        checkpoint_every=30,
        compute_dtype="float32",
    )
    export = tmp_path / "export"
    jobs.train_drafter(config, str(tmp_path / "run"), str(export))
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["measured_tau"] < 1.5 < lines[-1]["measured_tau"]
    assert lines[-1]["heldout_loss"] < 0.5 * lines[0]["heldout_loss"]
    assert lines[-1]["predicted_tau"] == pytest.approx(lines[-1]["measured_tau"], abs=1e-3)
    out = specjax.generate(target, f"{PARD}:{export}", [[3], [5, 6]], **ASK)
    assert out.tokens == specjax.generate(target, None, [[3], [5, 6]], **ASK).tokens
    assert out.tau > 1.5 and out.trace.setup["num_draft"] == 3
    assert specjax.audit(PARD, texts=500, checks=["guesses", "texts", "state"]).passed


def test_typical_acceptance_runs_marked_and_fails_by_name() -> None:
    rule = f"{EXAMPLES}/typical_acceptance.py:rule"
    ask = {**ASK, "temperature": 1.0, "rule": rule}
    out = specjax.generate(tiny.model(), f"{SUFFIX}:3", tiny.prompts(3), **ask)
    assert out.rule == "typical" and out.trace.setup["lossless"] is False
    report = specjax.audit(f"{SUFFIX}:2", rule, texts=500, checks=["rule", "texts", "state"])
    assert not report.lossless and "typical deviates from the target's law" in report.verdict
    assert {c.name: c.passed for c in report.checks} == {
        "rule": False,
        "texts": False,
        "state": True,
    }
