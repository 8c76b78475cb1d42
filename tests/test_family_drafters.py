"""Drafters of mixtures, hybrids and latent attention, in the layouts that are published for them.

Directories are written here as those programs write them, names and shapes of tensors by hand. Each
loads with its own sizes, whatever its target's are, or is refused in one line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from test_drafter_checkpoints import write
from test_families import same_as_plain

import specjax
from specjax.checkpoint import CheckpointError
from specjax.checkpoint.drafters.export import save_drafter
from specjax.checkpoint.drafters.load import load_drafter
from specjax.checkpoint.drafters.recognise import read_config
from specjax.checkpoint.export import save_pretrained
from specjax.drafters import LM
from specjax.models.config import UNNORMED
from specjax.models.layers.rope import YarnScaling

D, V, LAYERS = 32, 31, 4  # of all targets here
BASE = {"hidden_size": D, "vocab_size": V, "hidden_act": "silu", "tie_word_embeddings": False}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 10}
YARN = {"rope_type": "yarn", "factor": 64.0, "original_max_position_embeddings": 64}
IDS = "eagle_aux_hidden_state_layer_ids"


def target(family: str) -> specjax.Model:
    return tiny.model(family, layers=LAYERS)


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Random weights; norms near 1."""
    rng = np.random.default_rng(0)
    normal = lambda s: rng.normal(size=s) * (s[-1] ** -0.5 if len(s) > 1 else 0.1)
    found = {n: normal(s) + (len(s) == 1 and "norm" in n) for n, s in shapes.items()}
    return {n: x.astype(np.float32) for n, x in found.items()}


def dflash(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Tensors as z-lab names them, with biases where the config says so."""
    wide, count = config["num_attention_heads"], config["num_key_value_heads"]
    size, mlp = config["head_dim"], config["intermediate_size"]
    taps = len(config["dflash_config"]["target_layer_ids"])
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (D, taps * D)}
    shapes |= {"hidden_norm.weight": (D,), "norm.weight": (D,)}
    for i in range(config["num_hidden_layers"]):
        at = f"layers.{i}."
        rows = {"q": (wide * size, D), "k": (count * size, D), "v": (count * size, D)}
        rows |= {"o": (D, wide * size)}
        for name, shape in rows.items():
            shapes[f"{at}self_attn.{name}_proj.weight"] = shape
            if config.get("attention_bias"):
                shapes[f"{at}self_attn.{name}_proj.bias"] = shape[:1]
        shapes |= {f"{at}self_attn.{n}_norm.weight": (size,) for n in "qk"}
        shapes |= {f"{at}{n}_layernorm.weight": (D,) for n in ("input", "post_attention")}
        shapes |= {f"{at}mlp.{n}_proj.weight": (mlp, D) for n in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (D, mlp)
    return {prefix + n: t for n, t in filled(shapes).items()}


def eagle(config: dict[str, Any], at: str = "midlayer.", *, head: int = 0) -> dict[str, Any]:
    """Tensors of EAGLE-3; ``head`` rows in a head of its own."""
    taps = len((config.get("eagle_config") or config).get(IDS) or (0, 0, 0))
    wide, mlp = config["num_attention_heads"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (D, taps * D), "norm.weight": (D,)}
    if rank := config.get("kv_lora_rank"):
        q, r = config["q_lora_rank"], config["qk_rope_head_dim"]
        plain, values = config["qk_nope_head_dim"], config["v_head_dim"]
        inner: dict[str, tuple[int, ...]] = {
            "q_a_proj.weight": (q, 2 * D),
            "q_a_layernorm.weight": (q,),
            "q_b_proj.weight": (wide * (plain + r), q),
            "kv_a_proj_with_mqa.weight": (rank + r, 2 * D),
            "kv_a_layernorm.weight": (rank,),
            "kv_b_proj.weight": (wide * (plain + values), rank),
            "o_proj.weight": (D, wide * values),
        }
    else:
        size, count = config["head_dim"], config["num_key_value_heads"]
        inner = {"q_proj.weight": (wide * size, 2 * D), "o_proj.weight": (D, wide * size)}
        inner |= {f"{n}_proj.weight": (count * size, 2 * D) for n in "kv"}
    shapes |= {f"{at}self_attn.{n}": s for n, s in inner.items()}
    for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm"):
        shapes[f"{at}{name}.weight"] = (D,)
    shapes |= {f"{at}mlp.{n}_proj.weight": (mlp, D) for n in ("gate", "up")}
    shapes[f"{at}mlp.down_proj.weight"] = (D, mlp)
    if config.get("fc_norm") or config.get("use_aux_norm"):
        shapes |= {f"fc_norm.{i}.weight": (D,) for i in range(taps)}
    if config.get("norm_before_fc"):
        shapes["input_norm.weight"] = (taps * D,)
    if head:
        shapes["lm_head.weight"] = (head, D)
    return filled(shapes)


# --- what is published, at small sizes ------------------------------------------------------------

# z-lab/gpt-oss-20b-DFlash, its config as it was made from the target's.
GPT_OSS = {
    **{**BASE, **HEADS, "architectures": ["DFlashDraftModel"], "model_type": "gpt_oss"},
    **{"num_hidden_layers": 2, "intermediate_size": 20, "rms_norm_eps": 1e-5},
    **{"attention_bias": True, "rope_theta": 150000, "num_target_layers": LAYERS},
    "rope_scaling": {**YARN, "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0},
    "block_size": 4,
    "dflash_config": {"mask_token_id": 30, "target_layer_ids": [0, 1, 2]},
}
# z-lab/Qwen3.5-35B-A3B-DFlash since June 2026: keys in their block, windows but in the last layer.
QWEN35 = {
    **{**BASE, **HEADS, "architectures": ["DFlashDraftModel"], "model_type": "qwen3"},
    **{"num_hidden_layers": 2, "intermediate_size": 20, "rms_norm_eps": 1e-6},
    "layer_types": ["sliding_attention", "full_attention"],
    **{"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2},
    "rope_parameters": {"rope_theta": 10000000, "rope_type": "default"},
    "dflash_config": {"mask_token_id": 30, "target_layer_ids": [0, 2], "block_size": 4},
}
# moonshotai/Kimi-K2.7-Code's drafter as SpecForge trains it.
KIMI = {
    **{**BASE, **HEADS, "architectures": ["DFlashDraftModel"], "model_type": "qwen3"},
    **{"num_hidden_layers": 1, "intermediate_size": 20, "rms_norm_eps": 1e-5},
    **{"block_size": 4, "mask_token_id": 30, "rope_theta": 50000.0},
    "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "type": "yarn"},
    "dflash_config": {"mask_token_id": 30, "target_layer_ids": [0, 2]},
}
EAGLE = {
    **{**BASE, **HEADS, "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama"},
    **{"num_hidden_layers": 1, "intermediate_size": 20, "rms_norm_eps": 1e-6},
    **{"rope_theta": 1000000.0, "rope_scaling": None},
}
# lightseekorg/kimi-k2.6-eagle3.1-mla; the keys of experts come with ModelOpt's template for Kimi.
MLA = {
    **{**BASE, "architectures": ["Eagle3DeepseekV2ForCausalLM"], "model_type": "kimi_k2"},
    **{"num_hidden_layers": 1, "intermediate_size": 20, "rms_norm_eps": 1e-5},
    **{"num_attention_heads": 3, "num_key_value_heads": 3, "q_lora_rank": 7, "kv_lora_rank": 5},
    **{"qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 8, "rope_theta": 50000.0},
    **{"n_routed_experts": 384, "moe_intermediate_size": 2048, "first_k_dense_replace": 1},
    **{"n_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.827},
    "rope_scaling": {
        **{"type": "yarn", "factor": 64.0, "original_max_position_embeddings": 64},
        **{"beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    **{"fc_norm": True, "norm_output": True, "draft_vocab_size": V},
    "eagle_config": {IDS: [0, 1, 2], "use_aux_hidden_state": True, "use_last_layernorm": True},
}


@pytest.mark.parametrize(
    ("family", "config", "prefix"),
    [
        ("gpt_oss", GPT_OSS, ""),
        ("qwen3_5_moe", QWEN35, ""),
        ("kimi_k25", KIMI, ""),
        ("qwen3_moe", {**QWEN35, "num_target_layers": LAYERS}, "model."),
    ],
)
def test_a_block_drafter_keeps_its_own_sizes(
    tmp_path: Path, family: str, config: dict[str, Any], prefix: str
) -> None:
    goal = target(family)
    spec: Any = load_drafter(write(tmp_path / "d", config, dflash(config, prefix)), goal)
    c, b, said = spec.net.config, spec.net.config.backbone, config["dflash_config"]
    assert spec.name == "d (z-lab DFlash)" and c.taps == tuple(
        i + 1 for i in said["target_layer_ids"]
    )
    assert (b.num_heads, b.num_kv_heads, b.head_dim, b.intermediate_size) == (2, 1, 10, 20)
    assert (b.rms_norm_eps, c.block_size, c.mask_token_id) == (config["rms_norm_eps"], 4, 30)
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    assert b.rope.theta == theta and b.rope.partial == 1 and b.rope != goal.config.rope
    assert b.attention_bias == bool(config.get("attention_bias"))
    assert c.windows == ((8, None) if "layer_types" in config else (None,) * b.num_layers)
    if family == "gpt_oss":
        assert b.rope.scaling == YarnScaling(64.0, 64, truncate=False)
    if family == "kimi_k25":  # the ratio of the two, and half-split pairs
        assert b.rope.amplitude == 1.0


def test_eagle3_of_other_families(tmp_path: Path) -> None:
    """Heads: of few rows, of its own, and the target's where the file has none."""

    def loaded(family: str, config: dict[str, Any], tensors: dict[str, Any]) -> Any:
        return load_drafter(write(tmp_path / "d", config, tensors), target(family))

    # Tengyunw/qwen3_30b_moe_eagle3; AQ-MedAI/Qwen3.5-397B-A17B-eagle3 is like it.
    few = EAGLE | {"draft_vocab_size": 6}
    ids = np.array([2, 3, 7, 11, 12, 29])
    maps = {"d2t": ids - np.arange(6), "t2d": np.isin(np.arange(V), ids)}
    for family in ("qwen3_moe", "qwen3_5_moe"):
        spec = loaded(family, few, eagle(few, head=6) | maps)
        assert spec.target_ids.tolist() == ids.tolist() and spec.net.config.own_head
        assert spec.net.config.backbone.rope.theta == 1e6 and spec.net.config.taps == (2, 2, 1)
    # Dogacel/specdrift-gpt-oss-20b-eagle3: EAGLE-3.1, another number of taps.
    more = EAGLE | {"fc_norm": True, "norm_output": True, "eagle_config": {IDS: [0, 1, 2, 1]}}
    spec = loaded("gpt_oss", more, eagle(more, "layers.0.", head=V))
    assert spec.net.config.taps == (1, 2, 3, 2) and spec.net.config.norm_output
    # nvidia/gpt-oss-120b-Eagle3: no rows said, no head there. The target's is borrowed.
    none = EAGLE | {"draft_vocab_size": None, "eagle_config": {IDS: [0, 1, 2]}}
    spec = loaded("gpt_oss", none, eagle(none))
    assert not spec.net.config.own_head and spec.net.config.draft_vocab_size == V
    goal = target("gpt_oss")
    save_drafter(spec, tmp_path / "out", format="safeailab", target=goal)
    again: Any = load_drafter(tmp_path / "out", goal)
    assert again.net.config.own_head and again.net.config.taps == (1, 2, 3)
    text = {"input_ids": np.arange(9), "taps": np.ones((8, 3 * D), np.float32)}
    ours, copied = (x.outputs(goal, text, np.arange(9))["draft_logits"] for x in (spec, again))
    np.testing.assert_allclose(ours, copied, atol=1e-5)
    for change, extra, message in [
        ({"norm_before_fc": True, "fc_norm": True}, {}, "norm_before_fc .* and fc_norm .* exclude"),
        ({}, maps, "d2t names 6 tokens, but there is no lm_head.weight"),
        ({"num_aux_hidden_states": 5}, {}, "num_aux_hidden_states=5, but 3 layers are tapped"),
        ({"num_local_experts": 16}, {}, "num_local_experts=16: not supported"),
        ({}, {"midlayer.mlp.experts.0.up_proj.weight": np.ones(3)}, "a mixture of experts"),
    ]:
        with pytest.raises(CheckpointError, match=message) as error:
            loaded("gpt_oss", none | change, eagle(none | change) | extra)
        assert "\n" not in str(error.value)


def test_a_tap_before_the_final_norm(tmp_path: Path) -> None:
    """nvidia/gpt-oss-120b-Eagle3-v3: its ids say how many layers a state has gone through."""
    goal, config = target("gpt_oss"), EAGLE | {"norm_before_fc": True}
    config |= {"draft_vocab_size": V, "eagle_config": {IDS: [1, 2, LAYERS]}}
    spec: Any = load_drafter(write(tmp_path / "d", config, eagle(config, head=V)), goal)
    taps = spec.net.config.taps
    assert taps == (1, 2, UNNORMED)
    tokens = np.arange(6)[None]
    states = goal.net(tokens, taps=(*taps, LAYERS)).features
    raw, normed = np.split(np.asarray(states), 4, axis=-1)[2:]
    np.testing.assert_allclose(goal.net.module.norm(raw), normed, atol=1e-5)
    assert np.abs(raw - normed).max() > 0.1
    assert same_as_plain(goal, spec) >= 1.0
    with pytest.raises(ValueError, match="a tap before the final norm"):
        save_drafter(spec, tmp_path / "out", format="speculators", target=goal)


def test_a_draft_with_latent_attention(tmp_path: Path) -> None:
    """Loaded under both names of its layer, equal to its equations, exported, and lossless."""
    goal = target("kimi_k25")
    tensors = eagle(MLA, head=V)
    spec: Any = load_drafter(write(tmp_path / "d", MLA, tensors), goal)
    c = spec.net.config
    assert spec.name == "d (EAGLE-3)" and c.taps == (1, 2, 3) and c.fc_norm and c.norm_output
    assert (c.latent.rank, c.latent.query_rank, c.latent.value_dim, c.latent.eps) == (5, 7, 8, 1e-5)
    assert c.latent.rope != goal.config.rope and c.latent.num_heads == 3
    assert same_as_plain(goal, spec) >= 1.0
    text = np.random.default_rng(1).integers(0, V, 9)
    golden = {"input_ids": text, "taps": np.random.default_rng(2).normal(size=(8, 3 * D))}
    golden = {**golden, "taps": golden["taps"].astype(np.float32)}
    found = spec.outputs(goal, golden, text)
    table = np.asarray(goal.net.vocabulary.embedding)
    want = written_out(tensors, golden["taps"], table[text[1:]])
    np.testing.assert_allclose(found["draft_hidden"], want, atol=2e-5)

    save_drafter(spec, tmp_path / "out", format="safeailab", target=goal)
    again: Any = load_drafter(tmp_path / "out", goal)
    assert again.net.config == c
    # As TorchSpec writes it for vLLM: other names, and ids that count hidden_states.
    vllm = MLA | {"_torchspec_version": "0.1.0", "eagle_config": {IDS: [1, 2, 3]}}
    other: Any = load_drafter(write(tmp_path / "v", vllm, eagle(vllm, "layers.0.", head=V)), goal)
    assert other.net.config == c
    for change, message in [
        ({"use_moe": True}, "use_moe=True is not supported"),
        ({"mla_use_nope": True}, "mla_use_nope=True: not supported"),
        ({"kv_lora_rank": None}, "config.json lacks kv_lora_rank"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            load_drafter(write(tmp_path / "b", MLA | change, tensors), goal)


def written_out(w: dict[str, Any], taps: np.ndarray, embedded: np.ndarray) -> np.ndarray:
    """The states [S, D] of one pass over S pairs, head by head, position by position."""
    norm = lambda x, name: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"]
    product = lambda x, name: x @ w[f"midlayer.{name}.weight"].T
    parts = [norm(taps[:, i * D : (i + 1) * D], f"fc_norm.{i}") for i in range(3)]
    x = np.concatenate(parts, 1) @ w["fc.weight"].T
    both = [norm(embedded, "midlayer.input_layernorm"), norm(x, "midlayer.hidden_norm")]
    fed = np.concatenate(both, 1)
    q = norm(product(fed, "self_attn.q_a_proj"), "midlayer.self_attn.q_a_layernorm")
    q = product(q, "self_attn.q_b_proj").reshape(-1, 3, 10)
    low = product(fed, "self_attn.kv_a_proj_with_mqa")
    kv = norm(low[:, :5], "midlayer.self_attn.kv_a_layernorm")
    kv = product(kv, "self_attn.kv_b_proj").reshape(-1, 3, 14)
    scaling = YarnScaling(64.0, 64, beta_fast=1.0, mscale=1.0, mscale_all_dim=1.0)
    kept = scaling.kept(50000.0, 4)
    freqs = 50000.0 ** (-np.arange(2) / 2)
    angles = np.arange(len(x))[:, None] * (kept * freqs + (1 - kept) * freqs / 64.0)

    def rotate(y: np.ndarray) -> np.ndarray:
        """Neighbours are a pair."""
        turned = (y[..., 0::2] + 1j * y[..., 1::2]) * np.exp(1j * angles)
        return np.stack([turned.real, turned.imag], -1).reshape(y.shape)

    key, out = rotate(low[:, 5:]), np.zeros((len(x), 3, 8))
    for n in range(3):
        scores = q[:, n, :6] @ kv[:, n, :6].T + rotate(q[:, n, 6:]) @ key.T
        scores = scores * 10**-0.5 * (0.1 * np.log(64.0) + 1) ** 2
        scores = np.where(np.tri(len(x)), scores, -np.inf)
        p = np.exp(scores - scores.max(1, keepdims=True))
        out[:, n] = p / p.sum(1, keepdims=True) @ kv[:, n, 6:]
    x = x + product(out.reshape(len(x), -1), "self_attn.o_proj")
    y = norm(x, "midlayer.post_attention_layernorm")
    gate = product(y, "mlp.gate_proj")
    x = x + product(gate / (1 + np.exp(-gate)) * product(y, "mlp.up_proj"), "mlp.down_proj")
    return norm(x, "norm")


# --- refused, for what they name ------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    # SpecForge's configs of that name.
    "qwen3-30B-A3B-eagle3-moe-draft": (
        {**EAGLE, "architectures": ["Qwen3MoEForCausalLMEagle3"], "num_experts": 128},
        "an EAGLE-3 drafter with a mixture of experts",
    ),
    "kimi-k3-dspark-5mla": (
        {**KIMI, "architectures": ["KimiK3DSpark5MLADraftModel"], "kv_lora_rank": 512},
        "a DSpark drafter with multi-head latent attention",
    ),
    "deepseek dflash": (
        {**KIMI, "kv_lora_rank": 512},
        "a z-lab DFlash drafter with multi-head latent attention",
    ),
    "qwen3.8-27b-dspark-moe": (
        {
            **{**KIMI, "architectures": ["DSparkDraftModel"], "moe_preset": "qwen3_5_moe"},
            **{"n_routed_experts": 16, "num_experts_per_tok": 2},
        },
        "moe_preset='qwen3_5_moe'",
    ),
    # XiaomiMiMo/MiMo-V2.5-Pro-FP4-DFlash
    "mimo": ({**KIMI, "attention_sink_bias": True}, "attention_sink_bias=True is not supported"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name: str) -> None:
    config, message = REFUSED[name]
    with pytest.raises(CheckpointError, match=message) as error:
        read_config(config, name)
    assert "\n" not in str(error.value) and "not supported" in str(error.value)


@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3"])
def test_a_language_model_of_such_a_family_is_a_draft(tmp_path: Path, family: str) -> None:
    """Sinks, experts and latent attention are refused in drafters' own layers alone."""
    goal = tiny.model(family)
    save_pretrained(goal.net.module, tmp_path, token_ids={}, dtype=np.dtype(np.float32))
    assert isinstance(load_drafter(tmp_path, goal), LM)


def test_yarn_at_two_levels() -> None:
    """SpecForge's qwen3.8-27b-dspark: the base twice, the scaling once."""
    config = KIMI | {
        "architectures": ["DSparkDraftModel"],
        "rope_scaling": None,
        "rope_parameters": {**YARN, "rope_theta": 50000.0},
    }
    config |= {"target_hidden_size": None, "block_size": 7}
    _, c = read_config(config, "d")
    assert c.shifted and c.backbone.rope.scaling == YarnScaling(64.0, 64)
