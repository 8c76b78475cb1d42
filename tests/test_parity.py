"""Parity with reference outputs: Hugging Face families and llama2.c files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from scripts import invoke, script, start
from tiny_checkpoint import write_tiny

from specjax.checkpoint import load
from specjax.checkpoint.parity import Tolerances, compare_story, compare_target


@pytest.mark.parametrize("name", ["llama3", "llama3-tied", "qwen3"])
def test_parity_with_transformers(shared: Path, name: str) -> None:
    model = load(shared / "parity" / name, dtype="float32")
    golden = dict(np.load(shared / "parity" / name / "golden.npz"))
    rows = compare_target(model, golden, Tolerances())
    assert {"logits", "hidden_states", "last_prenorm", "greedy_tokens"} <= {r.name for r in rows}
    assert sum(r.name.startswith("cache_") for r in rows) == 4
    assert [r for r in rows if not r.passed] == []
    # The comparison can fail: a shifted golden does, and an array that is not known is listed.
    golden["logits"] = golden["logits"] + np.float32(1e-3)
    golden["greedy_tokens"] = (golden["greedy_tokens"] + 1) % 7
    golden["router_logits"] = np.zeros(3)
    passed = {r.name: r.passed for r in compare_target(model, golden, Tolerances())}
    assert passed["logits"] is False and passed["greedy_tokens"] is False
    assert passed["router_logits"] is None and passed["hidden_states"] is True


def test_parity_with_llama2c(shared: Path) -> None:
    folder = shared / "weights" / "stories260K"
    model = load(folder / "stories260K.bin")
    assert model.stop_token_ids == (1, 2) and model.bos_token_id == 1 and model.dtype == jnp.float32
    golden = json.loads((folder / "golden_greedy.json").read_text())
    rows = compare_story(model, golden, Tolerances())
    assert {r.name: r.passed for r in rows} == {
        "greedy_ids": True,
        "greedy_text": True,
        "logits_after_bos": True,
    }
    assert model.tokenizer is not None
    # Its own text, encoded and merged, is what the model wrote.
    text = golden["greedy_text"].removeprefix(" ")
    assert model.tokenizer.encode(text)[:100] == [1, *golden["greedy_ids"][:99]]


def test_parity_script(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parity = script("parity")
    check_script(parity, shared, capsys)


def check_script(parity: Any, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> int | str | None:
        flags.FLAGS.unparse_flags()
        try:
            return start(parity, "parity", *arguments)
        except SystemExit as end:
            return end.code

    precision = jax.config.jax_default_matmul_precision
    try:
        checkpoint = f"--checkpoint={shared}/parity/llama3-tied"
        assert run(checkpoint) == 0
        assert "9 of 9 within tolerance" in capsys.readouterr().out
        assert run(checkpoint, "--logits_tol=1e-9") == 1
        assert "FAIL" in capsys.readouterr().out
        assert run(checkpoint, "--golden=nowhere.npz") == 2
        assert run(checkpoint, "--target=x") == 2
        assert run("--checkpoint=./nowhere") == 2
        err = capsys.readouterr().err.splitlines()
        assert [("golden" in err[0]), ("no such" in err[1]), ("no such" in err[2])] == [True] * 3
    finally:
        jax.config.update("jax_default_matmul_precision", precision)


def test_parity_without_golden_outputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers computes them, where it is installed; else it is named."""
    directory = write_tiny(tmp_path / "target")
    precision = jax.config.jax_default_matmul_precision
    try:
        line = ("parity", f"--checkpoint={directory}")
        parity = script("parity")
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "torch", None)
            status, _, said = invoke(parity, capsys, *line)
        assert status == 2 and said.count("\n") == 1
        assert "torch is not installed" in said and "pip install torch transformers" in said
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
        status, out, _ = invoke(parity, capsys, *line)
        assert status == 0 and "4 of 4 within tolerance" in out, out
    finally:
        jax.config.update("jax_default_matmul_precision", precision)
