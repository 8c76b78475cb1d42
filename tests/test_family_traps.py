"""What other implementations of these families got wrong, one small case each."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import specjax
from specjax.checkpoint import CheckpointError
from specjax.checkpoint.assemble import bind
from specjax.checkpoint.export import save_pretrained
from specjax.checkpoint.hf import read_config, text_tensors
from specjax.checkpoint.packed import unpacked
from specjax.checkpoint.safetensors_reader import read_directory
from specjax.core.ops import Stack, attend, experts
from specjax.core.tensors import Tensor
from specjax.core.trips import expected_share
from specjax.lab.costs import account
from specjax.lab.costs.experts import distinct
from specjax.models import family
from specjax.models.config import flattened
from specjax.models.layers.experts import Experts, Mixture, Router
from specjax.models.layers.norm import ZeroCentredNorm
from specjax.models.places import Stacked, Whole

F32 = jnp.dtype(jnp.float32)
SMALL: dict[str, Any] = {
    "vocab_size": 8,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}


# Attention.


@pytest.mark.parametrize("cached", [0, 3])
def test_a_sink_takes_its_share_once(cached: int) -> None:
    """n keys that score 0 beside a sink of 0: 1 / (n + 1) each, whatever parts they come in."""
    zeros = lambda *shape: jnp.zeros((1, 2, *shape), jnp.float32)
    seen = jnp.ones((1, 1, 2), bool)
    old = (zeros(3, 4), jnp.ones((1, 2, 3, 4)), jnp.ones((1, 1, 3), bool)) if cached else None
    out = attend(zeros(1, 4), zeros(2, 4), jnp.ones((1, 2, 2, 4)), seen, old, sinks=jnp.zeros(2))
    n = 2 + cached
    np.testing.assert_allclose(out, n / (n + 1), rtol=1e-6)
    masked = attend(zeros(1, 4), zeros(2, 4), zeros(2, 4), ~seen, None, sinks=jnp.zeros(2))
    assert (masked == 0).all()


def test_windows_are_where_the_config_says() -> None:
    qwen2 = {**SMALL, "model_type": "qwen2", "sliding_window": 4, "max_window_layers": 2}
    assert family("qwen2").read_config(qwen2).windows == ()
    on = {**qwen2, "use_sliding_window": True}
    assert family("qwen2").read_config(on).windows == (None, None, 4, 4)
    for none in ({"sliding_window": None}, {"sliding_window": 0}, {}):
        assert (
            family("mistral").read_config({**SMALL, "model_type": "mistral", **none}).windows == ()
        )
    found = family("mistral").read_config(
        {**SMALL, "model_type": "mistral", "sliding_window": 4, "head_dim": 12}
    )
    assert found.windows == (4,) * 4 and found.head_dim == 12
    oss = family("gpt_oss").read_config(
        {**SMALL, "model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2}
    )
    assert oss.windows == (128, None, 128, None) and oss.head_dim == 64


def test_gemma_pairs_layers_and_rotations() -> None:
    """Local layers rotate by 10000 unscaled, every sixth by a million, scaled."""
    raw = {"model_type": "gemma3", "text_config": {"hidden_size": 1152, "num_hidden_layers": 12}}
    raw["text_config"]["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    config = family("gemma3").read_config(flattened(raw))
    assert [i for i, w in enumerate(config.windows) if w is None] == [5, 11]
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 4, 256)
    assert (config.vocab_size, config.tie_word_embeddings) == (262208, True)
    np.testing.assert_allclose(config.local_rope.frequencies(256)[1], 1e4 ** (-2 / 256))
    np.testing.assert_allclose(config.rope.frequencies(256)[1], 1e6 ** (-2 / 256) / 8)
    of_v5 = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    of_v5["full_attention"] = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    text = {**raw["text_config"], "rope_scaling": None, "rope_parameters": of_v5}
    again = family("gemma3").read_config(flattened({**raw, "text_config": text}))
    assert (again.rope, again.local_rope) == (config.rope, config.local_rope)
    small = dataclasses.replace(config, num_layers=0, vocab_size=8)
    module = family("gemma3")(small, dtype=jnp.dtype(jnp.bfloat16), rngs=nnx.Rngs(0))
    assert module.embed_scale == 34.0  # 33.94, rounded to the type of the weights
    layer = nnx.eval_shape(
        lambda: family("gemma3").make_layer(
            dataclasses.replace(config, query_scalar=168.0), 0, dtype=F32, rngs=nnx.Rngs(0)
        )
    )
    assert round(layer.self_attn.scale, 5) == 0.07715


def test_a_gain_above_one_is_formed_in_full() -> None:
    norm = ZeroCentredNorm(4, eps=0.0, dtype=jnp.dtype(jnp.bfloat16), rngs=nnx.Rngs(0))
    norm.weight[...] = jnp.full(4, 0.003, jnp.bfloat16)
    found = float(norm(jnp.ones((1, 4), jnp.float32))[0, 0])
    assert found == pytest.approx(1.003, abs=1e-4)  # 1 + 0.003 in bfloat16 is 1


def test_latent_attention_is_scaled_by_whole_heads() -> None:
    raw = {**SMALL, "model_type": "deepseek_v3", **family("deepseek_v3").small}
    raw |= {"rope_scaling": {"rope_type": "default"}, "qk_nope_head_dim": 128}
    raw |= {"qk_rope_head_dim": 64}
    latent = family("deepseek_v3").read_config(raw).latent
    assert latent.rope.scaling is None and latent.scale == pytest.approx(192**-0.5)
    yarn = {"type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    yarn |= {"original_max_position_embeddings": 4096}
    scaled = family("deepseek_v3").read_config({**raw, "rope_scaling": yarn}).latent
    assert scaled.scale == pytest.approx(192**-0.5 * (0.1 * np.log(40) + 1) ** 2)
    assert scaled.rope.amplitude == 1.0


# Routers and experts.


def routed(logits: list[float], **how: Any) -> tuple[list[int], list[float]]:
    """What a router of these logits chooses, and the weights."""
    mixture = Mixture(len(logits), width=2, **how)
    router = Router(1, mixture, dtype=F32, rngs=nnx.Rngs(0))
    router.weight[...] = jnp.asarray(logits, jnp.float32)[:, None]
    chosen, weights = router(jnp.ones((1, 1, 1)))
    return chosen[0, 0].tolist(), [round(float(w), 4) for w in weights[0, 0]]


def test_weights_are_of_all_experts_or_of_the_chosen() -> None:
    assert routed([2, 1, 0], chosen=2, renormalised=False) == ([0, 1], [0.6652, 0.2447])
    assert routed([2, 1, 0], chosen=2, renormalised=True) == ([0, 1], [0.7311, 0.2689])
    assert routed([2, 1, 0], chosen=2, score="chosen") == ([0, 1], [0.7311, 0.2689])


@pytest.mark.parametrize("score", ["softmax", "chosen", "sigmoid"])
def test_of_equal_scores_the_lower_number_is_chosen(score: Any) -> None:
    assert routed([1.0] * 6, chosen=3, score=score)[0] == [0, 1, 2]


def test_a_correction_chooses_in_full_and_never_weighs() -> None:
    """2.500 and 2.507 are one number in bfloat16."""
    mixture = Mixture(2, 1, 2, score="sigmoid", corrected=True, renormalised=False)
    router = Router(1, mixture, dtype=jnp.dtype(jnp.bfloat16), rngs=nnx.Rngs(0))
    router.weight[...] = jnp.zeros((2, 1), jnp.bfloat16)
    assert router.e_score_correction_bias[...].dtype == jnp.float32
    router.e_score_correction_bias[...] = jnp.asarray([2.5, 2.507])
    chosen, weights = router(jnp.ones((1, 1, 1), jnp.bfloat16))
    assert chosen.tolist() == [[[1]]] and weights.tolist() == [[[0.5]]]


def test_an_experts_bias_is_weighted_and_added_once() -> None:
    mixture = Mixture(4, 4, 3, score="chosen", bias=True)
    layer = Experts(2, mixture, dtype=F32, rngs=nnx.Rngs(0))
    layer.down_proj[...] = jnp.zeros_like(layer.down_proj[...])
    layer.down_proj_bias[...] = jnp.ones_like(layer.down_proj_bias[...])
    chosen, weights = jnp.arange(4, dtype=jnp.int32)[None, None], jnp.full((1, 1, 4), 0.25)
    np.testing.assert_allclose(layer(jnp.ones((1, 1, 2)), chosen, weights), 1.0)


def test_experts_that_nobody_chose_are_not_looked_at() -> None:
    """Whatever lies there: neither few tokens nor many read them."""
    for tokens in (2, 40):
        stack = Stack(jnp.ones((3, 2, 2)), jnp.ones((3, 2, 2)), jnp.ones((3, 2, 2)))
        nan = jax.tree.map(lambda w: w.at[1].set(jnp.nan), stack)
        chosen = jnp.broadcast_to(jnp.asarray([0, 2], jnp.int32), (1, tokens, 2))
        args = jnp.ones((1, tokens, 2)), chosen, jnp.full((1, tokens, 2), 0.5)
        np.testing.assert_allclose(experts(*args, nan), experts(*args, stack))


def test_what_several_tokens_read_together_is_counted(shared: Path) -> None:
    """The union of their experts: k of one token, never more than all, as few as a text repeats."""
    target = specjax.load(shared / "parity" / "qwen3-moe", dtype="float32")
    one, four, many = distinct(target, [list(range(40))], [1, 4, 40])
    k, num = target.config.mixture.chosen, target.config.mixture.num
    assert one == k < four < many <= num
    assert four <= num * expected_share(k / num, 4) + 1.0
    weights = [account.weight_bytes(target.net, tokens=n) for n in (1, 4, 1000)]
    experts = 3 * 4 * num * 32 * 64 * 3  # matrices, bytes, experts of three layers
    assert weights[2] - weights[0] == pytest.approx(experts * (1 - k / num), rel=0.01)
    assert weights[0] < weights[1] < weights[2]


# Packed weights.


def tensor(values: Any) -> Tensor:
    values = np.asarray(values)
    return Tensor(values.shape, values.dtype, lambda: values)


def test_an_awq_word_holds_its_columns_in_an_order_of_its_own() -> None:
    said = {"quant_method": "awq", "bits": 4}
    tensors = {
        "x.qweight": tensor(np.array([[0x76543210]], np.uint32).view(np.int32)),
        "x.qzeros": tensor(np.zeros((1, 1), np.int32)),
        "x.scales": tensor(np.ones((1, 8), np.float16)),
    }
    found = unpacked(tensors, {"quantization_config": said}, "x")["x.weight"].values()
    assert found[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_a_last_group_that_is_shorter_is_as_the_config_says() -> None:
    """40 inputs in groups of 16: 16, 16 and 8, not three alike; other sizes are refused."""
    scales = np.repeat(np.array([[1.0], [2.0]], np.float16), 8, axis=1)
    tensors = {
        "x.qweight": tensor(np.full((5, 8), 0x99999999, np.uint32).view(np.int32)),
        "x.qzeros": tensor(np.full((3, 1), 0x88888888, np.uint32).view(np.int32)),
        "x.scales": tensor(np.concatenate([scales, scales[:1]])),
    }
    said = {"quant_method": "gptq", "bits": 4, "sym": True, "group_size": 16}
    found = unpacked(tensors, {"quantization_config": said}, "x")["x.weight"].values()
    assert found[0].tolist() == [1.0] * 16 + [2.0] * 16 + [1.0] * 8
    with pytest.raises(CheckpointError, match=r"40 inputs do not fall into 3 groups.*=32"):
        unpacked(tensors, {"quantization_config": {**said, "group_size": 32}}, "x")


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_of_gptq_are_stored_less_one(symmetric: bool) -> None:
    """But of a symmetric file, whatever is stored; and less nothing in its second version."""
    said = {"quant_method": "gptq", "bits": 4, "sym": symmetric}

    def read(zero: int, **more: Any) -> list[float]:
        tensors = {
            "x.qweight": tensor(np.full((1, 8), 0x99999999, np.uint32).view(np.int32)),
            "x.qzeros": tensor(np.full((1, 1), zero * 0x11111111, np.uint32).view(np.int32)),
            "x.scales": tensor(np.ones((1, 8), np.float16)),
        }
        raw = {"quantization_config": {**said, **more}}
        return unpacked(tensors, raw, "x")["x.weight"].values()[0].tolist()

    assert read(7) == [1.0] * 8
    assert read(8) == ([1.0] if symmetric else [0.0]) * 8
    if not symmetric:
        assert read(8, checkpoint_format="gptq_v2") == [1.0] * 8
        assert read(15) == [9.0] * 8  # 15 + 1 wraps


def test_what_lacks_its_scale_is_refused(shared: Path) -> None:
    path = shared / "parity" / "deepseek-v3-fp8"
    tensors, raw = read_directory(path), read_config(path / "config.json")
    tensors.pop("model.layers.1.mlp.experts.0.up_proj.weight_scale_inv")
    with pytest.raises(CheckpointError, match=r"1 tensors in 8 bits without a scale.*experts.0"):
        unpacked(tensors, raw, "x")
    tensors.pop("model.layers.1.mlp.experts.1.up_proj.weight")
    with pytest.raises(CheckpointError, match=r"experts.1.up_proj.weight is missing"):
        unpacked(tensors, raw, "x")


def test_two_tensors_of_one_name_are_refused() -> None:
    names = ("model.norm.weight", "model.language_model.norm.weight")
    with pytest.raises(CheckpointError, match=f"{names[0]} and {names[1]}"):
        text_tensors({name: tensor(np.ones(2)) for name in names}, ())
    with pytest.raises(ValueError, match="text_config"):
        flattened({"text_config": {"text_config": {"hidden_size": 1}}})


def test_scales_of_whole_numbers_are_refused() -> None:
    for base, end, scale in (("x.weight", "", "_scale_inv"), ("x", "_blocks", "_scales")):
        pieces = {base + end: np.zeros((2, 4, 1, 16), np.uint8), base + scale: np.ones(1, bool)}
        with pytest.raises(CheckpointError, match=f"{base}{scale} is bool, not "):
            unpacked({name: tensor(value) for name, value in pieces.items()}, {}, "here")


def test_one_expert_of_whole_numbers_is_refused() -> None:
    whole = {f"e.{i}": tensor(np.ones(2, np.int32 if i else np.float32)) for i in range(2)}
    place = Stacked((Whole("e.0"), Whole("e.1")))
    with pytest.raises(CheckpointError, match=r"e\.1 \(int32\)"):
        bind([place], [(2, 2)], whole, "here")


def test_what_a_config_leaves_out_is_as_its_authors_have_it() -> None:
    oss = {**SMALL, "model_type": "gpt_oss", **family("gpt_oss").small}
    assert family("gpt_oss").read_config(oss).rope.scaling.factor == 32.0
    plain = family("gpt_oss").read_config({**oss, "rope_scaling": {"rope_type": "default"}})
    assert plain.rope.scaling is None
    assert family("gpt_oss").read_config(family("gpt_oss").write_config(plain)) == plain
    small = {**family("qwen3_5_text").small, "rope_parameters": {"rope_theta": 1e4}}
    qwen = {**SMALL, "model_type": "qwen3_5_text", **small}
    assert family("qwen3_5_text").read_config(qwen).rope.partial == 0.25
    for key in ("n_group", "topk_group", "routed_scaling_factor"):
        raw = {**SMALL, "model_type": "deepseek_v3", **family("deepseek_v3").small, key: None}
        with pytest.raises(ValueError, match=f"lacks {key}"):
            family("deepseek_v3").read_config(raw)


@pytest.mark.parametrize("name", ["gpt-oss", "kimi-k25", "deepseek-v3-fp8"])
def test_a_part_is_unpacked_from_its_own_bytes(name: str, shared: Path) -> None:
    """Any box of a packed tensor is that of the whole, as a mesh asks for it."""
    path, rng = shared / "parity" / name, np.random.default_rng(0)
    found = unpacked(read_directory(path), read_config(path / "config.json"), name)
    plain = read_directory(path)
    packed = [n for n in found if n not in plain or plain[n].dtype != found[n].dtype]
    assert len(packed) > 5
    for n in packed[:12]:
        whole = found[n].values()
        for _ in range(4):
            edges = (np.sort(rng.integers(0, size + 1, 2)) for size in whole.shape)
            box = tuple(slice(int(a), int(b)) for a, b in edges)
            np.testing.assert_array_equal(found[n].read()[box], whole[box])


def test_plain_experts_of_gpt_oss_are_turned(shared: Path, tmp_path: Path) -> None:
    """Its square matrices load either way: that they are [in, out] in plain files, names say."""
    path = shared / "parity" / "gpt-oss"
    target = specjax.load(path, dtype="float32")
    save_pretrained(target.net.module, tmp_path, dtype=jnp.float32)
    stored = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert name in stored and not any("_blocks" in n for n in stored)
    up = target.net.params["layers"][0]["mlp"]["experts"]["up_proj"][...]
    np.testing.assert_array_equal(stored[name][:, :, 1::2].swapaxes(1, 2), up)
    again = specjax.load(tmp_path, dtype="float32")
    same = jax.tree.map(lambda a, b: bool((a == b).all()), target.net.params, again.net.params)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("name", ["qwen3-moe", "kimi-k25", "qwen3-5-moe", "deepseek-v3"])
def test_what_is_exported_loads_back(name: str, shared: Path, tmp_path: Path) -> None:
    """As the text model alone, unpacked, every parameter in its place."""
    target = specjax.load(shared / "parity" / name, dtype="float32")
    save_pretrained(target.net.module, tmp_path, dtype=jnp.float32)
    said = json.loads((tmp_path / "config.json").read_text())
    assert said["architectures"] and "text_config" not in said
    again = specjax.load(tmp_path, dtype="float32")
    ours, theirs = target.config, again.config
    ignored = {"model_type": "", **({"num_nextn": 0} if hasattr(ours, "num_nextn") else {})}
    assert dataclasses.replace(ours, **ignored) == dataclasses.replace(theirs, **ignored)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), target.net.params, again.net.params)
    assert all(jax.tree.leaves(same))


def test_kept_precise_whatever_the_others_are(shared: Path) -> None:
    target = specjax.load(shared / "parity" / "qwen3-5", dtype="bfloat16", join=False)
    layer = target.net.params["layers"][0]["linear_attn"]
    kinds = {n: layer[n][...].dtype for n in ("A_log", "dt_bias")}
    assert set(kinds.values()) == {F32} and layer["norm"]["weight"][...].dtype == F32
    assert layer["in_proj_qkv"]["weight"][...].dtype == jnp.bfloat16
