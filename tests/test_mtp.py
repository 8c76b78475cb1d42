"""MTP: the heads that targets come with, and those that are trained for any family."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import checks
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import specjax
from specjax.checkpoint.drafters.named import as_spec
from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.parity import Tolerances
from specjax.checkpoint.parity_drafters import DraftTolerances, compare_drafter
from specjax.drafters import MTP
from specjax.drafters.misreadings import reread
from specjax.train.drafter import Trainee


@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3-5", "qwen3-5-moe"])
def test_a_head_gives_what_its_authors_code_does(name: str, shared: Path) -> None:
    """One step, or three that feed on their own states; by name, out of the target's files."""
    path = shared / "parity" / name
    target = specjax.load(path, dtype="float32")
    spec = as_spec("mtp:3", target)
    with np.load(path / "golden_mtp.npz") as arrays:
        golden = {k: v for k, v in arrays.items() if not k.startswith("e2e_")}
    compare: dict[str, Any] = {"prompt": np.zeros(0), "generated": {}}
    rows = compare_drafter(target, spec, golden, DraftTolerances(), **compare)
    computed = [row for row in rows if row.name.startswith("mtp_")]
    assert computed and all(row.passed for row in computed), computed
    if name == "qwen3-5":  # what is fed back shows from the second step on
        other = dataclasses.replace(spec, net=reread(spec.net, recycle="raw"))
        row = compare_drafter(target, other, golden, DraftTolerances(), **compare)[-1]
        assert row.name == "mtp_logits_steps" and row.difference > 1.0 > Tolerances().logits


def test_cycles_are_those_of_the_authors_loop(shared: Path) -> None:
    """DeepSeek-V3's head, one guess a cycle: the same text in the same cycles."""
    path = shared / "parity" / "deepseek-v3"
    with np.load(path / "golden_mtp.npz") as arrays:
        golden = dict(arrays)
    target, prompt = specjax.load(path, dtype="float32"), golden["input_ids"][:-1].tolist()
    out = specjax.generate(target, "mtp:1", prompt, max_new_tokens=32, stop_token_ids=[])
    assert out.tokens[0] == golden["e2e_tokens"].tolist()
    # The reference takes its first token from the prefill, which is its first window.
    first = specjax.generate(
        target, "mtp:1", [*prompt, out.tokens[0][0]], max_new_tokens=31, stop_token_ids=[]
    )
    assert len(first.trace.rows[0]) == len(golden["e2e_window_lens"]) - 1


def test_a_target_without_a_head_says_so(shared: Path) -> None:
    target = specjax.load(shared / "parity" / "qwen3", dtype="float32")
    with pytest.raises(CheckpointError, match=r"no head for .*\(no tensors mtp\.\*\); .*train_mtp"):
        specjax.generate(target, "mtp", [1, 2], max_new_tokens=2)


@pytest.mark.parametrize("family", ["qwen3_5_moe", "deepseek_v3", "mistral"])
def test_predicted_cycles_are_the_real_ones(family: str) -> None:
    """What training sees is what inference does, whatever the head's layer is."""
    target = tiny.model(family)
    spec = tiny.make("mtp", 3, target=target)
    trainee, params = Trainee.of("mtp", spec, {}, num_draft=3, compute_dtype=jnp.float32)
    found = checks.predicted_cycles(target, spec, trainee.objective, params, new=24)
    checks.accepted_as_predicted(*found)


def test_a_fresh_head_begins_as_the_last_layer_of_its_kind() -> None:
    target = tiny.model("qwen3_5_moe")
    spec = MTP.fresh(target, num_draft=2)
    ours, theirs = spec.net.module.layer, target.net.module.layers[-1]
    assert (ours.self_attn.q_proj.weight[...] == theirs.self_attn.q_proj.weight[...]).all()
    assert (ours.mlp.experts.up_proj[...] == theirs.mlp.experts.up_proj[...]).all()
