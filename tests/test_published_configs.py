"""Configs as they are published: read right, without weights, or refused for what they name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file
from test_drafter_checkpoints import write, zlab

import specjax
from specjax.checkpoint import CheckpointError
from specjax.checkpoint.drafters.load import load_drafter
from specjax.checkpoint.drafters.recognise import read_config
from specjax.models import family
from specjax.models.layers.rope import YarnScaling
from specjax.models.rope_config import RopeWarning, read_rope
from specjax.models.shapes import SHAPES

PUBLISHED = json.loads((Path(__file__).parent / "data/specforge_configs.json").read_text())
DEEPSPEC, EAGLE, ZLAB = "DeepSpec DSpark", "EAGLE-3", "z-lab DFlash"
MROPE, DOMINO, PEAGLE = "RoPE scaling 'mrope'", "a Domino drafter", "a P-EAGLE drafter"
# Taps count hidden_states; () are the original's, which depend on the target.
# EAGLE-3: hidden size, query and key/value heads, head size, base, taps, rows of the head.
# DFlash: hidden size, heads, head size, base, taps, layers, block, mask, rank of the Markov head.
# Else what the refusal names.
# fmt: off
VERDICTS: dict[str, str | tuple[Any, ...]] = {
    "deepseek-v2-lite-eagle3": (EAGLE, 2048, 16, 16, 128, 1e4, (), 32000),
    "deepseek-v3-671b-eagle3": (EAGLE, 7168, 56, 8, 128, 1e4, (2, 30, 58), 32000),
    "gemma3-1b-eagle3": (EAGLE, 1152, 4, 1, 256, 1e6, (), 32000),
    "glm-5.2-dspark": (DEEPSPEC, 6144, 64, 16, 64, 8e6, (2, 20, 39, 58, 77), 5, 7, 154856, 256),
    "gpt-oss-120B-eagle3": (EAGLE, 2880, 64, 8, 64, 1e4, (2, 18, 34), 32000),
    "gpt-oss-20B-eagle3": (EAGLE, 2880, 64, 8, 64, 1e4, (2, 12, 22), 32000),
    "inkling-dspark": (DEEPSPEC, 6144, 64, 16, 64, 8e6, (6, 18, 36, 48, 60), 5, 7, 200064, 256),
    "kimi-k3-dspark": (DEEPSPEC, 7168, 64, 16, 64, 1e4, (8, 24, 52, 68, 84), 5, 7, 163824, 256),
    "lfm2.5-1.2b-instruct-dflash": (ZLAB, 2048, 32, 8, 64, 1e6, (2, 5, 8, 11, 14), 8, 16, 16, 0),
    "ling-flash-2.0-eagle3": (EAGLE, 4096, 32, 8, 128, 1e4, (), 32000),
    "llama3-70B-ealge3": (EAGLE, 8192, 64, 8, 128, 5e5, (), 32000),
    "llama3-8B-eagle3": (EAGLE, 4096, 32, 8, 128, 1e4, (), 32000),
    "llama4-scout-17B-16E-eagle3": (EAGLE, 5120, 40, 8, 128, 1e4, (), 32000),
    "longcat-flash-dflash": (ZLAB, 6144, 32, 8, 128, 1e6, (2, 8, 14, 20, 26), 5, 16, 2, 0),
    "longcat-flash-eagle3": (EAGLE, 6144, 64, 16, 128, 1e7, (), 131072),
    "phi4-eagle3": (EAGLE, 5120, 40, 10, 128, 250000.0, (), 32000),
    "qwen2-5-vl-7b-eagle3": MROPE,
    "qwen2.5-0.5b-dflash": (ZLAB, 896, 14, 2, 64, 1e6, (2, 7, 12, 17, 22), 5, 16, 151669, 0),
    "qwen2.5-0.5b-eagle3": (EAGLE, 896, 14, 2, 64, 1e6, (), 16000),
    "qwen2.5-7b-eagle3": (EAGLE, 3584, 28, 4, 128, 1e6, (), 16000),
    "qwen2.5-vl-32b-eagle3": MROPE,
    "qwen3-235B-A22B-eagle3": (EAGLE, 4096, 64, 4, 128, 1e6, (2, 47, 91), 32000),
    "qwen3-30B-A3B-eagle3.1": (EAGLE, 2048, 32, 4, 128, 1e6, (), 32000),
    "qwen3-30B-A3B-eagle3": (EAGLE, 2048, 32, 4, 128, 1e6, (), 32000),
    "qwen3-32b-eagle3": (EAGLE, 5120, 64, 8, 128, 1e6, (), 32000),
    "qwen3-4b-dflash": (ZLAB, 2560, 32, 8, 128, 1e6, (2, 10, 18, 26, 34), 5, 16, 151669, 0),
    "qwen3-4b-dspark": (DEEPSPEC, 2560, 32, 8, 128, 1e6, (2, 10, 18, 26, 34), 5, 7, 151669, 256),
    "qwen3-4b-eagle3": (EAGLE, 2560, 32, 8, 128, 1e6, (), 32000),
    "qwen3-8b-dflash": (ZLAB, 4096, 32, 8, 128, 1e6, (2, 10, 18, 26, 34), 5, 16, 151669, 0),
    "qwen3-8b-domino": DOMINO,
    "qwen3-8b-dspark": (DEEPSPEC, 4096, 32, 8, 128, 1e6, (2, 10, 18, 26, 34), 5, 7, 151669, 256),
    "qwen3-8b-eagle3": (EAGLE, 4096, 32, 8, 128, 1e6, (), 32000),
    "qwen3-8b-peagle": PEAGLE,
    "qwen3-coder-30B-A3B-instruct-eagle3": (EAGLE, 2048, 32, 4, 128, 1e6, (), 32000),
    "qwen3-coder-480B-A35B-instruct-eagle3": (EAGLE, 6144, 96, 8, 128, 1e6, (), 32000),
    "qwen3-coder-next-eagle3": (EAGLE, 2048, 16, 4, 128, 1e6, (), 32000),
    "qwen3-next-80b-a3b-eagle3": (EAGLE, 2048, 16, 2, 256, 1e7, (), 32000),
    "qwen3.5-35b-a3b-dflash": (ZLAB, 2048, 32, 4, 128, 1e7, (2, 11, 20, 29, 38), 8, 16, 248070, 0),
    "qwen3.5-35b-a3b-eagle3": (EAGLE, 2048, 16, 2, 256, 1e7, (), 32000),
    "qwen3.5-4b-dflash": (ZLAB, 2560, 32, 8, 128, 1e7, (2, 9, 16, 23, 30), 5, 16, 248070, 0),
    "qwen3.5-4b-domino": DOMINO,
    "qwen3.6-27b-dflash": (ZLAB, 5120, 32, 8, 128, 1e7, (2, 17, 32, 47, 62), 5, 16, 248070, 0),
    "qwen3.6-27b-domino-full-attention": DOMINO,
    "qwen3.6-27b-dspark": (
        DEEPSPEC, 5120, 32, 8, 128, 1e7, (3, 18, 33, 48, 63), 5, 16, 248070, 256
    ),
    "qwq-32B-eagle3": (EAGLE, 5120, 40, 8, 128, 1e6, (), 32000),
}
# fmt: on


@pytest.mark.parametrize("name", VERDICTS)
def test_a_config_of_specforge(name: str) -> None:
    raw, verdict = PUBLISHED["configs"][name + ".json"], VERDICTS[name]
    if isinstance(verdict, str):
        with pytest.raises(CheckpointError, match=rf"^{name}.* not supported") as error:
            read_config(raw, name)
        assert verdict in str(error.value) and "\n" not in str(error.value)
        return
    form, c = read_config(raw, name)
    b = c.backbone
    read = (form, b.hidden_size, b.num_heads, b.num_kv_heads, b.head_dim, b.rope.theta, c.taps)
    if form == EAGLE:
        assert (*read, c.draft_vocab_size) == verdict
        assert (b.vocab_size, c.target_hidden_size) == (raw["vocab_size"], raw["hidden_size"])
        assert c.norm_output == c.fc_norm == name.endswith("3.1")
        assert b.num_layers == 1 and not b.attention_bias
    else:
        assert (*read, b.num_layers, c.block_size, c.mask_token_id, c.markov_rank) == verdict
        assert c.confidence_head == c.shifted == (form == DEEPSPEC)
        window = 2048 if name == "qwen3.6-27b-dflash" else None
        assert c.windows == (window,) * (b.num_layers - 1) + (None,)
    assert (b.rms_norm_eps, b.intermediate_size) == (raw["rms_norm_eps"], raw["intermediate_size"])
    kinds = {"llama3-70B-ealge3": "Llama3Scaling"} | dict.fromkeys(
        ("deepseek-v2-lite-eagle3", "kimi-k3-dspark"), "YarnScaling"
    )
    assert type(b.rope.scaling).__name__ == kinds.get(name, "NoneType")


def test_every_config_of_specforge_has_a_verdict() -> None:
    assert {n.removesuffix(".json") for n in PUBLISHED["configs"]} == VERDICTS.keys()
    assert len(VERDICTS) == 45 and len(PUBLISHED["commit"]) == 40 and "MIT" in PUBLISHED["licence"]


# Rotary embedding.

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def test_rope_in_both_schemas() -> None:
    theta = {"rope_theta": 1000000}
    for raw in (
        {"rope_scaling": YARN, **theta},
        {"rope_parameters": {**YARN, **theta}},
        {"rope_scaling": YARN, "rope_parameters": theta},
        {"rope_scaling": YARN, "rope_parameters": {**YARN, **theta}, **theta},
        {
            "rope_scaling": {**YARN, "type": "yarn"},
            **theta,
            "original_max_position_embeddings": 32768,
        },
    ):
        rope = read_rope(raw)
        assert rope.theta == 1e6 and rope.scaling == YarnScaling(4.0, 32768), raw
    assert read_rope({"rope_scaling": {"type": "default"}, "rope_parameters": None}).scaling is None
    for raw, message in [
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": YARN},
            "rope_type is 'default' in rope_parameters and 'yarn' in rope_scaling, which",
        ),
        (
            {"rope_scaling": {**YARN, "type": "linear"}},
            "rope_type is 'yarn' .* 'linear' in rope_sc",
        ),
        ({"rope_parameters": {**YARN, **theta}, "rope_theta": 1e4}, "rope_theta is 1000000 in"),
        (
            {"rope_parameters": {**YARN, "factor": 8}, "rope_scaling": YARN},
            "factor is 8 in rope_parameters and 4.0 in rope_scaling",
        ),
        ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "'default' has no factor=2.0"),
        ({"rope_scaling": {"factor": 2.0}}, "'default' has no factor=2.0"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1]}}, "'mrope' is not supported"),
        ({"rope_parameters": {"full_attention": YARN}}, "has no full_attention="),
        ({"rope_scaling": {"rope_type": "yarn"}}, "yarn RoPE scaling lacks factor"),
        ({"rope_scaling": {**YARN, "beta_fast": 0.5}}, "beta_fast=0.5 .* at least beta_slow=1"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_rope(raw)


def test_attn_factor_is_left_out_with_a_word(shared: Path, tmp_path: Path) -> None:
    """Transformers knows attention_factor only; the same logits as without the key."""
    said = json.loads((shared / "cases/configs/yarn_attn_factor.json").read_text())
    with pytest.warns(RopeWarning, match=r"attn_factor=0\.878.* Transformers leaves it out"):
        rope = read_rope(said)
    assert rope == read_rope({"rope_scaling": {**said["rope_scaling"], "attn_factor": None}})
    assert rope.amplitude == pytest.approx(0.1 * np.log(4.0) + 1.0)

    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    directory = Path(shutil.copytree(shared / "parity/qwen3", tmp_path / "m"))
    config = json.loads((directory / "config.json").read_text()) | said
    (directory / "config.json").chmod(0o644)
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.warns(RopeWarning):
        ours = specjax.load(directory, dtype="float32")
    ids = np.arange(40)[None] % 300
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        want = theirs(torch.tensor(ids)).logits.numpy()
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(tiny.full_logits(ours, ids), want, atol=2e-4)


# Windows, in targets and drafts.

OFF: tuple[dict[str, Any], ...] = (
    {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28},
    {"use_sliding_window": False, "sliding_window": 4},
    {"sliding_window": 4096},  # Transformers' classes of these families want the flag
    {"use_sliding_window": None, "sliding_window": None, "max_window_layers": 0},
    {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
    {"use_sliding_window": True, "sliding_window": 0, "max_window_layers": 0},
    {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 4},
    {"use_sliding_window": True, "sliding_window": 4},  # from layer 28 on
    {"layer_types": ["full_attention"] * 4, "sliding_window": 4},
    {"layer_types": ["full_attention"] * 4, "use_sliding_window": True, "sliding_window": 4},
)
ON: tuple[dict[str, Any], ...] = (
    {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 2, "sliding_window": 4},
)


def test_windows_that_are_off(shared: Path) -> None:
    target = json.loads((shared / "parity/qwen3/config.json").read_text()) | {
        "num_hidden_layers": 4
    }
    target = {
        k: v for k, v in target.items() if not k.endswith(("window", "types", "window_layers"))
    }
    eagle = PUBLISHED["configs"]["llama3-8B-eagle3.json"] | {"num_hidden_layers": 4}
    dflash = PUBLISHED["configs"]["qwen3-4b-dflash.json"] | {"num_hidden_layers": 4}
    for name in ("layer_types", "sliding_window", "use_sliding_window", "max_window_layers"):
        dflash.pop(name)
    for off in OFF:
        for kind in ("qwen3", "llama"):
            raw = {**target, "model_type": kind}
            assert family(kind).read_config({**raw, **off}) == family(kind).read_config(raw)
        assert read_config(eagle | off, "e") == read_config(eagle, "e"), off
        assert read_config(dflash | off, "d")[1].windows == (None,) * 4, off
    for on in ON:
        with pytest.raises(ValueError, match="layer 2 and 1 more attend to a window of 4"):
            family("llama").read_config({**target, "model_type": "llama", **on})
        for kind in ("qwen3", "qwen2"):
            found = family(kind).read_config({**target, "model_type": kind, **on})
            assert found.windows == (None, None, 4, 4)
        with pytest.raises(CheckpointError, match="attend to a window of 4"):
            read_config(eagle | on, "e")
        assert read_config(dflash | on, "d")[1].windows == (None, None, 4, 4)
    for odd in ({"use_sliding_window": True, "max_window_layers": 2}, {"layer_types": ["x"] * 4}):
        with pytest.raises(CheckpointError, match=r"no sliding_window|layer_types holds x"):
            read_config(eagle | odd, "e")


def test_a_head_is_as_wide_as_its_class_says() -> None:
    """Qwen3's class in Transformers 5 has heads of 128, Llama's of the width over their number."""
    raw = {k: v for k, v in SHAPES["qwen3-8b"].items() if k != "head_dim"}
    for kind, width in (("qwen3", 128), ("llama", 64)):
        config = family(kind).read_config({**raw, "model_type": kind, "hidden_size": 2048})
        assert config.head_dim == width and config.num_heads == 32


# Drafters as other programs write them.


@pytest.fixture(scope="module")
def llama(shared: Path) -> specjax.Model:
    return specjax.load(shared / "parity/llama3", dtype="float32")


def same(a: Any, b: Any) -> bool:
    leaves = zip(jax.tree.leaves(a.net.params), jax.tree.leaves(b.net.params), strict=True)
    whole = all(np.array_equal(x, y) for x, y in leaves)
    return a.net.config == b.net.config and whole and np.array_equal(a.target_ids, b.target_ids)


def test_eagle3_of_modelopt_and_of_others(
    shared: Path, llama: specjax.Model, tmp_path: Path
) -> None:
    original = shared / "parity/eagle3-llama3"
    config = json.loads((original / "config.json").read_text())
    tensors = load_file(original / "model.safetensors")
    want: Any = load_drafter(original, llama)

    def again(config: dict[str, Any], tensors: dict[str, Any] = tensors) -> Any:
        return load_drafter(write(tmp_path / "d", config, tensors), llama)

    modelopt = json.loads((shared / "cases/configs/eagle3_modelopt.json").read_text())
    assert same(again(modelopt), want)
    window = json.loads((shared / "cases/configs/eagle3_window_off.json").read_text())
    assert same(again(config | window), want)
    renamed = {n.replace("midlayer.", "layers.0."): t for n, t in tensors.items()}
    spec = again(config | {"architectures": ["LlamaForCausalLM"]}, renamed)
    assert same(spec, want) and spec.name == "d (EAGLE-3)"
    # Some leave draft_vocab_size null: the head says how many rows it has.
    assert same(again(config | {"draft_vocab_size": None}), want)
    for change in (
        {"use_last_layernorm": False},
        {"use_mtp_layernorm": True},
        {"next_layer_regular": False},
        {"parallel_draft_step": 2},
        {"rope_theta": 500000.0},  # which no reader looks for there
    ):
        name = next(iter(change))
        with pytest.raises(CheckpointError, match=name):
            again(modelopt | {"eagle_config": modelopt["eagle_config"] | change})


def test_dspark_of_specforge(shared: Path, tmp_path: Path) -> None:
    goal = tiny.model("qwen3", layers=4)
    config, tensors = zlab(goal)
    said = json.loads((shared / "cases/configs/dspark_specforge.json").read_text())["dflash_config"]
    config["architectures"] = ["DSparkDraftModel"]
    said |= {"mask_token_id": 30, "markov_rank": 8, "target_layer_ids": [0, 2]}
    tensors["markov_head.markov_w1.weight"] = np.ones((31, 8), np.float32)
    tensors["markov_head.markov_w2.weight"] = np.ones((31, 8), np.float32)
    tensors["confidence_head.proj.weight"] = np.ones((1, 40), np.float32)
    tensors["confidence_head.proj.bias"] = np.ones((1,), np.float32)
    spec: Any = load_drafter(write(tmp_path / "d", config | {"dflash_config": said}, tensors), goal)
    plain = {k: v for k, v in said.items() if k not in ("attention_mode", "confidence_head_alpha")}
    want: Any = load_drafter(
        write(tmp_path / "p", config | {"dflash_config": plain}, tensors), goal
    )
    assert type(spec).__name__ == "DSpark" and same(spec, want) and spec.net.config.confidence_head
    said["attention_mode"] = "mla"
    with pytest.raises(CheckpointError, match="MLA"):
        load_drafter(write(tmp_path / "m", config | {"dflash_config": said}, tensors), goal)


def test_the_default_proposal_method(shared: Path, llama: specjax.Model, tmp_path: Path) -> None:
    original = shared / "parity/speculators-eagle3-llama3"
    raw = json.loads((original / "config.json").read_text())
    tensors = load_file(original / "model.safetensors")

    def num_draft(default: Any, *methods: tuple[str, Any]) -> int:
        listed = [{"proposal_type": t, "speculative_tokens": n} for t, n in methods]
        said = {"default_proposal_method": default, "proposal_methods": listed}
        directory = write(tmp_path / "d", raw | {"speculators_config": said}, tensors)
        spec: Any = load_drafter(directory, llama)
        return spec.num_draft

    assert num_draft("eagle3", ("suffix", 8), ("eagle3", 3)) == 3
    assert num_draft("suffix", ("suffix", 8), ("eagle3", 3)) == 8
    assert num_draft(None, ("greedy", 4)) == 4 and num_draft("greedy", ("greedy", None)) == 5
    for methods, message in [
        ([("greedy", 4)], "default_proposal_method='eagle3' is none of .*greedy"),
        ([("eagle3", "three")], "speculative_tokens='three': must be an integer"),
        ([("eagle3", 0)], "speculators_config.proposal_methods.speculative_tokens=0: must be"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            num_draft("eagle3", *methods)
