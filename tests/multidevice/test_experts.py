"""Mixtures of experts on meshes: the same sums and the same text as on one device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import thinned

import specjax
from specjax.checkpoint import CheckpointError
from specjax.checkpoint.drafters.export import save_drafter
from specjax.checkpoint.drafters.load import load_drafter
from specjax.checkpoint.load import num_packed
from specjax.core.ops import Stack, experts
from specjax.core.sharding import make_mesh, parse_mesh, use_mesh
from specjax.drafters import LM

FAMILIES = ("qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_5_moe")
MESHES = ({"experts": 8}, {"model": 4, "experts": 2}, {"data": 2, "experts": 4}, {"model": 8})


@pytest.mark.parametrize("tokens", [1, 3, 24])
def test_sums_are_those_of_one_device(tokens: int) -> None:
    """Also where fewer tokens than devices are fed."""
    rng = np.random.default_rng(tokens)
    drawn = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    stack = Stack(drawn(8, 16, 12), drawn(8, 16, 12), drawn(8, 12, 16), drawn(8, 16), drawn(8, 16))
    x = drawn(2, tokens, 12)
    weights, chosen = jax.lax.top_k(drawn(2, tokens, 8), 3)
    want = experts(x, chosen, weights, stack)
    for sizes in MESHES:
        with use_mesh(make_mesh(**sizes)):
            got = jax.jit(experts)(x, chosen, weights, stack)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4, err_msg=str(sizes))


# Packed, gpt_oss is below.
@pytest.mark.parametrize("family", thinned(FAMILIES, "qwen3_moe", "deepseek_v3", "gpt_oss"))
def test_text_is_that_of_one_device(family: str) -> None:
    target, prompts = tiny.model(family, vocab=32), tiny.prompts(4, 32)
    warm = {"temperature": [0.0, 0.8] * 2, "max_new_tokens": 12, "rule": "coupled"}
    want = specjax.generate(target, None, prompts, **warm).tokens
    split = tiny.placed(target, parse_mesh("data:2,model:2,experts:2"))
    experts = split.net.params["layers"][1]["mlp"]["experts"]["up_proj"][...]
    assert experts.addressable_shards[0].data.size == experts.size // 4
    draft = tiny.placed(tiny.near(target), split.mesh)
    assert specjax.generate(split, LM(draft, 2), prompts, **warm).tokens == want


@pytest.mark.parametrize("name,kept", [("gpt-oss", 12), ("deepseek-v3-fp8", 21)])
def test_packed_matrices_lie_in_parts(name: str, kept: int, shared: Path) -> None:
    """Of each device its own groups; those that two would share are written out."""
    how: dict[str, Any] = {"dtype": "float32", "weights": "packed"}
    one = specjax.load(shared / "parity" / name, **how)
    split = specjax.load(shared / "parity" / name, mesh="data:2,model:2,experts:2", **how)
    assert num_packed(split.net) == kept
    gate = split.net.params["layers"][1]["mlp"]["experts"]["gate_proj"].get_value()
    for x in jax.tree.leaves(gate):
        assert x.addressable_shards[0].data.size == x.size // 4
    tokens = jnp.asarray([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]], jnp.int32)
    logits = jax.jit(lambda net: net.head(net(tokens).hidden))
    with use_mesh(split.mesh):
        got = logits(split.net)
    np.testing.assert_allclose(got, logits(one.net), rtol=1e-4, atol=1e-4)


def test_a_dense_draft_is_split_over_the_model_axis_alone(tmp_path: Path) -> None:
    target = tiny.model("qwen3_moe", vocab=32)
    spec = tiny.make("dflash", 3, target=target)
    save_drafter(spec, tmp_path, format="zlab", target=target)
    split = tiny.placed(target, parse_mesh("data:2,model:2,experts:2"))
    draft: Any = load_drafter(tmp_path, split, replicate=False)
    weight = draft.net.params["layers"][0]["mlp"]["gate_up_proj"]["weight"][...]
    assert weight.addressable_shards[0].data.size == weight.size // 2
    prompts, how = tiny.prompts(2, 32), {"max_new_tokens": 8}
    ours, theirs = (specjax.generate(*x, prompts, **how) for x in ((split, draft), (target, spec)))
    assert ours.tokens == theirs.tokens and ours.tau == theirs.tau


def test_experts_that_do_not_divide_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"mesh axis experts, which do not divide 6"):
        tiny.placed(tiny.model("qwen3_moe"), make_mesh(experts=4))
    with pytest.raises(CheckpointError, match=r"no experts.*leave the axis experts out"):
        tiny.placed(tiny.model("qwen3"), make_mesh(experts=4))
