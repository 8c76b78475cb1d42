"""Published drafters: read without running their code, recognised, checked, equal in outputs."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

import specjax
from specjax import drafters
from specjax.checkpoint import CheckpointError
from specjax.checkpoint.drafters.load import load_drafter
from specjax.checkpoint.export import named_tensors
from specjax.checkpoint.parity_drafters import DraftTolerances, compare_drafter, prompt_of
from specjax.drafters import misreadings
from specjax.drafters.family import family_of
from specjax.jobs import comparing
from specjax.lab import diagnosis

# Folder -> target, class, what is said of it, taps (hidden_states), K.
PUBLISHED: dict[str, tuple[str, type, str, tuple[int, ...] | None, int]] = {
    "dflash-qwen3": ("qwen3", drafters.DFlash, "z-lab DFlash", (2, 4), 5),
    "dflash-swa-qwen3": ("qwen3", drafters.DFlash, "z-lab DFlash", (2, 4), 5),
    "dflash2-qwen3": ("qwen3", drafters.DFlash2, "z-lab DFlash2", (2, 4, 5), 5),
    "speculators-dflash-qwen3": ("qwen3", drafters.DFlash, "speculators DFlash", (2, 4), 5),
    "eagle3-llama3": ("llama3", drafters.Eagle3, "EAGLE-3", (2, 4, 5), 5),
    "speculators-eagle3-llama3": ("llama3", drafters.Eagle3, "speculators EAGLE-3", (2, 4, 5), 3),
    "medusa-llama3": ("llama3", drafters.Medusa, "Medusa", None, 4),
}


@pytest.fixture(scope="module")
def targets(shared: Path) -> dict[str, specjax.Model]:
    names = ("qwen3", "llama3")
    return {n: specjax.load(shared / "parity" / n, dtype="float32") for n in names}


# Recognition.


@pytest.mark.parametrize("folder", PUBLISHED)
def test_a_published_drafter_loads(
    shared: Path, targets: dict[str, specjax.Model], folder: str
) -> None:
    goal, cls, said, taps, num_draft = PUBLISHED[folder]
    spec: Any = load_drafter(shared / "parity" / folder, targets[goal])
    assert type(spec) is cls and spec.name == f"{folder} ({said})"
    bound = spec.bind(targets[goal], "one_hot")
    assert bound.num_draft == num_draft
    assert bound.taps == (taps or (targets[goal].config.num_layers,))
    assert {str(x.dtype) for x in jax.tree.leaves(spec.net.params)} == {"float32"}
    two: Any = load_drafter(shared / "parity" / folder, targets[goal], num_draft=2)
    assert two.bind(targets[goal], "one_hot").num_draft == 2


def test_masks_windows_and_heads_of_published_drafters(
    shared: Path, targets: dict[str, specjax.Model]
) -> None:
    def config(folder: str) -> Any:
        spec: Any = load_drafter(shared / "parity" / folder, targets[PUBLISHED[folder][0]])
        return spec.net.config

    swa, two, eagle = (config(f) for f in ("dflash-swa-qwen3", "dflash2-qwen3", "eagle3-llama3"))
    # Without is_causal, sliding layers are causal inside the block and full ones are not.
    assert swa.windows == (12, None) and swa.causal == (True, False)
    assert two.windows == (20, 20) and two.causal == (False, False)
    assert (two.logit_softcap, two.output_multiplier, two.selector_top_k) == (20.0, 0.5, 8)
    # The original EAGLE-3 has base 10000 and no scaling, whatever its target has.
    assert eagle.backbone.rope.theta == 1e4 and eagle.backbone.rope.scaling is None
    spec: Any = load_drafter(shared / "parity" / "speculators-eagle3-llama3", targets["llama3"])
    assert spec.net.config.norm_before_fc and spec.net.config.norm_before_residual
    assert spec.net.config.own_embedding is False  # its copy equals the target's
    assert spec.target_ids.shape == (160,) and int(spec.target_ids[0]) == 2


def test_a_language_model_and_a_pickle(
    shared: Path, targets: dict[str, specjax.Model], tmp_path: Path
) -> None:
    spec: Any = load_drafter(shared / "parity" / "draft-llama3-noisy", targets["llama3"])
    assert isinstance(spec, drafters.LM) and spec.num_draft == 5
    for folder, file in [
        ("eagle3-llama3", "pytorch_model.bin"),
        ("medusa-llama3", "medusa_lm_head.pt"),
    ]:
        (tmp_path / folder).mkdir()
        for name in ("config.json", file):
            shutil.copy(shared / "parity" / folder / name, tmp_path / folder / name)
        pickled: Any = load_drafter(tmp_path / folder, targets["llama3"])
        whole: Any = load_drafter(shared / "parity" / folder, targets["llama3"])
        for a, b in zip(jax.tree.leaves(pickled.net.params), jax.tree.leaves(whole.net.params)):
            np.testing.assert_allclose(a, b, atol=1e-7)  # float16 below its normal range


# Directories made here.


@pytest.fixture(scope="module")
def goal() -> specjax.Model:
    return tiny.model("qwen3", layers=4)


def write(directory: Path, config: dict[str, Any], tensors: dict[str, Any]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(
        {n: np.ascontiguousarray(t) for n, t in tensors.items()}, directory / "model.safetensors"
    )
    return directory


def zlab(goal: specjax.Model, **sizes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config and tensors of a DFlash drafter as z-lab would publish it."""
    spec: Any = drafters.DFlash.fresh(goal, num_draft=3, taps=(1, 3), **sizes)
    c = spec.net.config.backbone
    config = {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "num_target_layers": 4,
        "rope_theta": 10000.0,
        "block_size": 4,
        "dflash_config": {"mask_token_id": 30, "target_layer_ids": [0, 2]},
    }
    return config, named_tensors(spec.net.params)


def test_both_schemas(goal: specjax.Model, tmp_path: Path) -> None:
    config, tensors = zlab(goal)
    old: Any = load_drafter(write(tmp_path / "old", config, tensors), goal)
    config["dflash_config"]["block_size"] = config.pop("block_size")
    config["rope_parameters"] = {"rope_theta": config.pop("rope_theta"), "rope_type": "default"}
    prefixed = {n if n.startswith("fc") else f"model.{n}": t for n, t in tensors.items()}
    new: Any = load_drafter(write(tmp_path / "new", config, prefixed), goal)
    assert new.net.config == old.net.config and new.net.config.taps == (1, 3)
    assert old.net.config.block_size == 4 and old.net.config.backbone.rope.theta == 1e4
    for a, b in zip(jax.tree.leaves(old.net.params), jax.tree.leaves(new.net.params), strict=True):
        np.testing.assert_array_equal(a, b)
    config["is_causal"] = True
    causal: Any = load_drafter(write(tmp_path / "causal", config, prefixed), goal)
    assert causal.net.config.causal == (True,)
    config["dflash_config"] |= {"use_swa": True, "swa_window_size": 8}
    del config["is_causal"]
    swa: Any = load_drafter(write(tmp_path / "swa", config, prefixed), goal)
    assert (swa.net.config.windows, swa.net.config.causal) == ((8,), (False,))


def test_shifted_slots_and_copies_of_tables(goal: specjax.Model, tmp_path: Path) -> None:
    config, tensors = zlab(goal)
    config |= {
        "architectures": ["Qwen3DSparkModel"],
        "markov_rank": 0,
        **config.pop("dflash_config"),
    }
    tables = goal.net.vocabulary
    tensors["embed_tokens.weight"] = np.asarray(tables.embedding)
    tensors["lm_head.weight"] = np.asarray(tables.output)
    plain: Any = load_drafter(write(tmp_path / "plain", config, tensors), goal)
    c = plain.net.config
    assert isinstance(plain, drafters.DSpark) and c.shifted and c.max_guesses == 4
    assert not c.own_embedding and c.draft_vocab_size is None  # copies, dropped
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + np.float32(1)
    tensors["markov_head.markov_w1.weight"] = np.ones((31, 8), np.float32)
    tensors["markov_head.markov_w2.weight"] = np.ones((31, 8), np.float32)
    config |= {"markov_rank": 8}
    own: Any = load_drafter(write(tmp_path / "own", config, tensors), goal)
    assert own.net.config.draft_vocab_size == 31 and own.net.config.markov_rank == 8
    config |= {"markov_head_type": "rnn"}
    with pytest.raises(CheckpointError, match="markov_head_type='rnn'"):
        load_drafter(write(tmp_path / "rnn", config, tensors), goal)


def test_a_reduced_head(goal: specjax.Model, tmp_path: Path) -> None:
    config, tensors = zlab(goal)
    ids = np.array([2, 3, 7, 11, 12, 29])
    t2d = np.zeros(31, bool)
    t2d[ids] = True
    reduced = {
        "lm_head.weight": np.ones((6, 32), np.float32),
        "d2t": ids - np.arange(6),
        "t2d": t2d,
    }
    inner = {k: v for k, v in config.items() if k not in ("architectures", "dflash_config")}
    inner.pop("num_target_layers"), inner.pop("block_size")
    outer = {
        "speculators_model_type": "dflash",
        "aux_hidden_state_layer_ids": [1, 3],
        "mask_token_id": 30,
        "block_size": 4,
        "draft_vocab_size": 6,
        "transformer_layer_config": inner,
    }
    spec: Any = load_drafter(write(tmp_path / "s", outer, tensors | reduced), goal)
    assert spec.net.config.taps == (1, 3) and spec.net.config.draft_vocab_size == 6
    assert spec.target_ids.tolist() == ids.tolist()
    for change, message in [
        ({"t2d": ~t2d}, "d2t and t2d name different tokens"),
        ({"d2t": ids}, "does not map the 6 draft tokens"),
        ({"d2t": np.zeros(5, np.int64)}, "not 6 integers"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            load_drafter(write(tmp_path / "s", outer, tensors | reduced | change), goal)
    with pytest.raises(CheckpointError, match="speculators_model_type='peagle'"):
        outer["speculators_model_type"] = "peagle"
        load_drafter(write(tmp_path / "s", outer, tensors | reduced), goal)


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    # (changes at the top, changes in dflash_config, message)
    "contradiction": ({}, {"block_size": 8}, "block_size is 8 in dflash_config and 4 at the top"),
    "two bases": ({"rope_parameters": {"rope_theta": 5.0}}, {}, "rope_theta is 5.0 .* 10000.0"),
    "two causalities": ({"is_causal": True}, {"causal": False}, "contradict"),
    "vocabulary": ({"vocab_size": 99}, {}, "vocabulary of 99 tokens, but .* has 31"),
    "layers": ({"num_target_layers": 36}, {}, "num_target_layers=36, but .* has 4 layers"),
    "tap beyond": ({}, {"target_layer_ids": [0, 9]}, r"holds 9, .*hidden_states\[10\].* 4 layers"),
    "tap of the last layer": ({}, {"target_layer_ids": [0, 3]}, "after the final norm"),
    "too many taps": ({}, {"target_layer_ids": [0, 1, 2]}, "fc.weight is .* 3 taps"),
    "no taps": ({}, {"target_layer_ids": None}, "lacks dflash_config.target_layer_ids"),
    "mask outside": ({}, {"mask_token_id": 31}, "mask_token_id=31 lies outside"),
    "no mask": ({}, {"mask_token_id": None}, "lacks dflash_config.mask_token_id"),
    "no window": ({"layer_types": ["sliding_attention"]}, {}, "sliding_window=None"),
    "sinks": ({}, {"attention_sink_bias": True}, "attention_sink_bias=True"),
    "partial rotary": ({"partial_rotary_factor": 0.5}, {}, "partial_rotary_factor=0.5"),
    "unknown flag": ({}, {"emb_dim": 64}, "dflash_config.emb_dim=64: not supported"),
    "unknown scale": ({"attention_value_scale2": 0.6}, {}, "attention_value_scale2=0.6"),
    "projector": ({}, {"projector_type": "domino"}, "Domino"),
    "unknown projector": ({}, {"projector_type": "lily"}, "projector_type='lily'"),
    "architecture": ({"architectures": ["DominoDraftModel"]}, {}, "Domino"),
    "mla": ({"kv_lora_rank": 8}, {}, "MLA"),
    "quantised": ({"quantization_config": {"bits": 4}}, {}, "quantization_config.quant_method"),
    "activation": ({"hidden_act": "gelu"}, {}, "hidden_act='gelu'"),
    "rope": ({"rope_scaling": {"rope_type": "longrope"}}, {}, "'longrope' is not supported"),
    "too many layers": ({"num_hidden_layers": 10000}, {}, "says 10000 layers, .* are missing"),
    "more layers": ({"num_hidden_layers": 2}, {}, "missing tensors: layers.1"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_config_is_refused(goal: specjax.Model, tmp_path: Path, case: str) -> None:
    config, tensors = zlab(goal)
    top, block, message = BAD[case]
    config["dflash_config"] |= block
    with pytest.raises(CheckpointError, match=message) as error:
        load_drafter(write(tmp_path / "d", config | top, tensors), goal)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_bad_tensors_are_refused(goal: specjax.Model, tmp_path: Path) -> None:
    config, tensors = zlab(goal)
    cases: list[tuple[dict[str, Any], str]] = [
        (tensors | {"layers.0.extra.weight": np.ones(3, np.float32)}, "unknown tensors.*extra"),
        ({n: t for n, t in tensors.items() if n != "norm.weight"}, "missing tensors: norm.weight"),
        (tensors | {"norm.weight": np.full(32, np.nan, np.float32)}, "NaN"),
        (tensors | {"norm.weight": np.ones(3, np.float32)}, "norm.weight is .3., not .32."),
        (tensors | {"mask_hidden": np.ones(3, np.float32)}, "P-EAGLE"),
        (tensors | {"layers.0.self_attn.sinks": np.ones(3, np.float32)}, "attention sinks"),
    ]
    for changed, message in cases:
        with pytest.raises(CheckpointError, match=message):
            load_drafter(write(tmp_path / "d", config, changed), goal)
    directory = write(tmp_path / "d", config, tensors)
    with pytest.raises(CheckpointError, match="belongs to another target"):
        load_drafter(directory, tiny.model("qwen3", layers=4, vocab=47))
    with pytest.raises(CheckpointError, match="guesses deterministically"):
        load_drafter(directory, goal, kind="sampled")
    with pytest.raises(ValueError, match=r"num_draft=9.*at most 3"):
        load_drafter(directory, goal, num_draft=9)
    with pytest.raises(ValueError, match="num_draft=0"):
        load_drafter(directory, goal, num_draft=0)
    with pytest.raises(CheckpointError, match="no such file or directory"):
        load_drafter(tmp_path / "none", goal)
    with pytest.raises(CheckpointError, match=r"neither a drafter in a known format \(z-lab"):
        load_drafter(
            write(tmp_path / "x", {"model_type": "x"}, {"a": np.ones(3, np.float32)}), goal
        )
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is empty"):
        load_drafter(tmp_path / "empty", goal)


def test_conventions_of_tap_ids(
    shared: Path, targets: dict[str, specjax.Model], tmp_path: Path
) -> None:
    def taps(**changes: Any) -> Any:
        config = json.loads((shared / "parity/eagle3-llama3/config.json").read_text()) | changes
        tensors = load_file(shared / "parity/eagle3-llama3/model.safetensors")
        spec: Any = load_drafter(write(tmp_path / "e", config, tensors), targets["llama3"])
        return spec.net.config.taps

    key = "eagle_aux_hidden_state_layer_ids"
    assert taps() == (2, 4, 5)
    assert taps(**{key: [1, 3, 6]}) == (1, 3, 6)  # hidden_states
    assert taps(eagle_config={key: [1, 3, 6], "use_aux_hidden_state": True}) == (2, 4, 7)  # outputs
    assert taps(eagle_config={key: [1, 3, 5]}, **{key: [2, 4, 6]}) == (2, 4, 6)
    with pytest.raises(CheckpointError, match="contradict"):
        taps(eagle_config={key: [1, 3, 5]}, **{key: [1, 3, 5]})
    with pytest.raises(CheckpointError, match=r"eagle_config\.use_mtp"):
        taps(eagle_config={"use_mtp": True})
    with pytest.raises(CheckpointError, match="use_last_layernorm=False"):
        taps(eagle_config={"use_last_layernorm": False})
    with pytest.raises(CheckpointError, match="EAGLE-1/2"):
        load_drafter(shared / "parity/eagle1-llama3", targets["llama3"])
    with pytest.raises(CheckpointError, match="belongs to another target"):
        load_drafter(shared / "parity/medusa-llama3", tiny.model("llama"))


def test_a_repository(goal: specjax.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles are fetched only where there are no safetensors."""
    config, tensors = zlab(goal)
    whole = write(tmp_path / "hub", config, tensors)
    asked: list[list[str]] = []

    def snapshot(repository: str, **kwargs: Any) -> str:
        assert (repository, kwargs["revision"]) == ("owner/draft", "abc")
        asked.append(kwargs["allow_patterns"])
        return str(whole)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    spec: Any = load_drafter("owner/draft", goal, revision="abc")
    assert spec.name == "owner/draft (z-lab DFlash)"
    assert len(asked) == 1 and not any(p.endswith((".bin", ".pt")) for p in asked[0])
    os.remove(whole / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no .*safetensors"):
        load_drafter("owner/draft", goal, revision="abc")
    assert len(asked) == 3 and {"pytorch_model.bin", "medusa_lm_head.pt"} <= {*asked[2]}


# Parity.


@pytest.mark.parametrize("folder", [f for f in PUBLISHED if not f.startswith("dflash-")])
def test_parity_of_draft_passes(
    shared: Path, targets: dict[str, specjax.Model], folder: str
) -> None:
    target = targets[PUBLISHED[folder][0]]
    golden = dict(np.load(shared / "parity" / folder / "golden.npz"))
    beside = dict(np.load(shared / "parity" / PUBLISHED[folder][0] / "golden.npz"))
    spec = load_drafter(shared / "parity" / folder, target)
    rows = compare_drafter(
        target,
        spec,
        golden,
        DraftTolerances(),
        prompt=prompt_of(golden, beside),
        generated={},
    )
    assert [r for r in rows if r.passed is False] == []
    compared = {r.name for r in rows if r.passed}
    assert compared & {"draft_logits", "ttt_logits", "medusa_logits"}
    assert compared & {"context", "taps", "features"}
    for row in rows:
        assert row.passed is not None or row.note


def test_parity_of_a_whole_run(shared: Path, targets: dict[str, specjax.Model]) -> None:
    golden = comparing.read_golden(shared / "parity/dflash-swa-qwen3/golden.npz")
    spec: Any = load_drafter(shared / "parity/dflash-swa-qwen3", targets["qwen3"])
    prompt = prompt_of(golden, None)
    made = comparing.generated(targets["qwen3"], spec, golden, prompt)
    np.testing.assert_array_equal(made["e2e_tokens"], golden["e2e_tokens"])
    np.testing.assert_array_equal(made["e2e_produced"], golden["e2e_produced"])


# The check.


def test_a_drafter_that_drafts_passes_and_a_shifted_one_is_named(
    shared: Path, targets: dict[str, specjax.Model], tmp_path: Path
) -> None:
    target = targets["qwen3"]
    golden = np.load(shared / "parity/dflash-swa-qwen3/golden.npz")
    prompt = golden["input_ids"].tolist()
    good = load_drafter(shared / "parity/dflash-swa-qwen3", target)
    report = specjax.check_drafter(target, good, prompts=[prompt], cycles=16)
    assert report.passed and not report.causes and not report.trials
    assert f"tau {report.tau:.2f} of at most 6 over 16 greedy cycles" in str(report)
    assert report.tau > 2 and report.survival[0] == report.first_guess > 0.4
    # The same weights, their layer ids one too low.
    shutil.copytree(shared / "parity/dflash-swa-qwen3", tmp_path / "off")
    config = json.loads((tmp_path / "off/config.json").read_text())
    config["dflash_config"]["target_layer_ids"] = [0, 2]
    (tmp_path / "off/config.json").chmod(0o644)
    (tmp_path / "off/config.json").write_text(json.dumps(config))
    off = load_drafter(tmp_path / "off", target)
    wrong = specjax.check_drafter(target, off, prompts=[prompt], cycles=16)
    assert not wrong.passed and wrong.found is not None and wrong.found.what == "taps one higher"
    assert wrong.found.tau == report.tau and len(wrong.trials) == 1
    assert "With taps one higher tau is" in wrong.causes[0] and "add 1" in wrong.causes[0]
    order = ["Another target", "Taps off by one", "Mask token", "Rotary", "Scales", "Masks"]
    assert [c for c in order if any(x.startswith(c) for x in wrong.causes)] == order


def test_causes_of_other_kinds(goal: specjax.Model) -> None:
    ids = jnp.arange(5, dtype=jnp.int32)
    eagle: Any = drafters.Eagle3.fresh(goal, num_draft=2, target_ids=ids)
    kind = family_of(eagle)
    blank = diagnosis.DrafterReport("d", "t", "texts", 2, 9, 1.0, (0.0, 0.0), family=kind)
    causes = list(diagnosis._causes(blank, goal, eagle, [[1, 2, 30, 30]]))
    assert any("5 tokens are 50% of what the target wrote" in c for c in causes)
    tried = [what for what, *_ in diagnosis._trials(goal, eagle, [[1]], 99)]
    assert tried[-1] == "norm_before_residual=True"
    medusa: Any = drafters.Medusa.fresh(goal, num_draft=2)
    assert any(c.startswith("Heads") for c in diagnosis._causes(blank, goal, medusa, []))
    assert list(diagnosis._trials(goal, medusa, [[1]], 99)) == []
    with pytest.raises(ValueError, match="cycles=0"):
        specjax.check_drafter(goal, medusa, cycles=0)
    again = misreadings.reread(eagle.net, norm_output=True)
    assert again.module.config.norm_output and again.config.norm_output
    assert dataclasses.replace(again.config, norm_output=False) == eagle.net.config
