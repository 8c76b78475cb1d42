"""MTP: the heads that targets come with, and those that are trained for any family."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import checks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import thinned
from safetensors.numpy import load_file, save_file

import specjax
from specjax.checkpoint.drafters.export import save_drafter
from specjax.checkpoint.drafters.named import as_spec
from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.export import save_pretrained
from specjax.checkpoint.parity import Tolerances
from specjax.checkpoint.parity_drafters import DraftTolerances, compare_drafter
from specjax.drafters import MTP
from specjax.drafters.misreadings import reread
from specjax.jobs.exporting import export
from specjax.lab.compiler.pods import sums_of_pass
from specjax.models.joining import separated
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


# Of deepseek_v3, several heads are below.
@pytest.mark.parametrize(
    "family", thinned(["qwen3_5_moe", "deepseek_v3", "mistral"], "deepseek_v3")
)
def test_predicted_cycles_are_the_real_ones(family: str) -> None:
    """What training sees is what inference does, whatever the head's layer is."""
    target = tiny.model(family)
    spec = tiny.make("mtp", 3, target=target)
    trainee, params = Trainee.of("mtp", spec, {}, num_draft=3, compute_dtype=jnp.float32)
    found = checks.predicted_cycles(target, spec, trainee.objective, params, new=24)
    checks.accepted_as_predicted(*found)


VOCAB = 5  # so few that random heads are often right


def several(
    family: str, heads: int, num_draft: int, vocab: int = VOCAB
) -> tuple[specjax.Model, MTP]:
    """A tiny target, and heads for it whose weights are not those that they begin with."""
    target, rng = tiny.model(family, vocab=vocab), np.random.default_rng(6)
    spec = MTP.fresh(target, num_draft=num_draft, heads=heads)
    shaken = lambda x: x + jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype)
    net = dataclasses.replace(spec.net, params=jax.tree.map(shaken, spec.net.params))
    return target, dataclasses.replace(spec, net=net)


@pytest.mark.parametrize(
    ("family", "heads", "num_draft"), [("deepseek_v3", 2, 4), ("qwen3_5", 3, 3)]
)
def test_several_heads_guess_as_they_are_trained(family: str, heads: int, num_draft: int) -> None:
    """In every cycle, whatever was accepted before; text is the target's own."""
    target, spec = several(family, heads, num_draft)
    assert spec.net.config.recycle == ("raw" if family == "deepseek_v3" else "normed")
    trainee, params = Trainee.of("mtp", spec, {}, num_draft=num_draft, compute_dtype=jnp.float32)
    how = {"new": 48, "vocab": VOCAB}
    matches, out = checks.predicted_cycles(target, spec, trainee.objective, params, **how)
    checks.accepted_as_predicted(matches, out)
    plain = specjax.generate(target, None, tiny.prompts(4, VOCAB), max_new_tokens=48)
    assert out.tokens == plain.tokens
    accepted = [c.accepted for row in out.trace.rows for c in row]
    assert out.tau > 1.1 and max(accepted) > 1, accepted


def test_several_heads_go_on_with_another_turn() -> None:
    """As a fresh start does: what the last head read behind the shared part is forgotten."""
    checks.another_turn("mtp", several("qwen3", 3, 3, vocab=31))


def test_several_heads_in_a_targets_files(tmp_path: Path) -> None:
    """Written behind the layers of a saved target, found by ``mtp``, cut to fewer guesses."""
    target, spec = several("deepseek_v3", 3, 3)
    save_pretrained(target.net.module, tmp_path, token_ids={}, dtype=np.dtype(np.float32))
    save_drafter(spec, tmp_path / "heads", format="mtp", target=target)
    config = json.loads((tmp_path / "config.json").read_text())
    head = json.loads((tmp_path / "heads/config.json").read_text())
    assert head["num_nextn_predict_layers"] == 3
    said = {k: head[k] for k in ("num_nextn_predict_layers", "mtp_recycle")}
    (tmp_path / "config.json").write_text(json.dumps(config | said))
    tensors = load_file(tmp_path / "heads/model.safetensors")
    assert "model.layers.4.shared_head.norm.weight" in tensors  # of the third, behind two layers
    # Published files hold copies of the target's tables with each head.
    tensors["model.layers.3.embed_tokens.weight"] = np.zeros((VOCAB, 32), np.float32)
    save_file(tensors | load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")
    whole = specjax.load(tmp_path, dtype="float32")
    loaded: Any = as_spec("mtp", whole)
    assert loaded.num_draft == 3 and loaded.net.config == dataclasses.replace(
        spec.net.config, backbone=loaded.net.config.backbone
    )
    ours, theirs = (jax.tree.leaves(separated(x.net).params) for x in (spec, loaded))
    assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))
    fewer = as_spec("mtp:2", whole).bind(whole, "one_hot")
    assert fewer.net.config.heads == 2 and len(fewer.init(1, 8).cache.layers) == 2
    single = as_spec("mtp:1", whole).bind(whole, "one_hot")
    assert type(single).__name__ == "MTPDrafter" and single.net.config.heads == 1
    reads = [loaded.weight_reads(f"heads.{i}.layer.mlp.up_proj", 5) for i in range(3)]
    assert sums_of_pass(spec.net) == 3  # a pass runs one head: its two, and that of the embedding
    assert reads == [1, 1, 3] and loaded.weight_reads("heads.2.norm.weight", 2) == 0
    with pytest.raises(ValueError, match=r"num_draft=0: a drafter guesses at least 1 token"):
        as_spec("mtp:0", whole)
    with pytest.raises(ValueError, match=r"sizes\.heads=0: must be a whole number"):
        MTP.fresh(target, num_draft=1, heads=0)


@pytest.mark.parametrize("family", ["gpt_oss", "qwen3_moe", "deepseek_v3", "qwen3_5_moe"])
def test_a_trained_head_is_found_by_its_directory(family: str, tmp_path: Path) -> None:
    """Whatever its family has: sinks, experts, latent attention. And exported from there."""
    target = tiny.model(family)
    save_pretrained(target.net.module, tmp_path / "target", token_ids={}, dtype=np.dtype("float32"))
    target = specjax.load(tmp_path / "target", dtype="float32")
    spec = tiny.make("mtp", 3, target=target)
    save_drafter(spec, tmp_path / "head", format="mtp", target=target)
    for name in (f"{tmp_path}/head", f"mtp:{tmp_path}/head"):
        loaded: Any = as_spec(name, target)
        ours, theirs = (jax.tree.leaves(separated(x.net).params) for x in (spec, loaded))
        assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))
    asked = {"target": f"{tmp_path}/target", "checkpoint": f"{tmp_path}/head"}
    assert "reads back equal" in export(**asked, format="mtp", output=f"{tmp_path}/again")
    asked["checkpoint"] = f"mtp:{tmp_path}/again"
    assert "reads back equal" in export(**asked, format="mtp", output=f"{tmp_path}/twice")


def test_a_fresh_head_begins_as_the_last_layer_of_its_kind() -> None:
    target = tiny.model("qwen3_5_moe")
    spec = MTP.fresh(target, num_draft=2)
    ours, theirs = spec.net.module.heads[0].layer, target.net.module.layers[-1]
    assert (ours.self_attn.q_proj.weight[...] == theirs.self_attn.q_proj.weight[...]).all()
    assert (ours.mlp.experts.up_proj[...] == theirs.mlp.experts.up_proj[...]).all()
