"""Matrices of one input kept as one: the numbers, texts and checkpoints of each by itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import thinned
from flax import nnx
from safetensors.numpy import load_file

import specjax
from specjax.checkpoint.assemble import assemble
from specjax.checkpoint.export import hf_tensors, named_tensors, save_pretrained
from specjax.core.quantised import Quantised, quantise
from specjax.core.tensors import Pieces, Tensor
from specjax.models import FAMILIES, Frozen
from specjax.models.joining import joined, separated
from specjax.models.joint import Joint, dotted, joint_of
from specjax.models.places import Joined, Whole

# Biases, experts, gates beside a recurrent layer, latent attention; in full the rest.
VARIED = ("qwen2", "gpt_oss", "qwen3_5_moe", "deepseek_v3")
JOINED = thinned(FAMILIES, *(name for name in FAMILIES if name not in VARIED))


def with_net(model: specjax.Model, net: Frozen) -> specjax.Model:
    return dataclasses.replace(model, net=net)


def joints(net: Frozen) -> dict[str, Joint]:
    flat = nnx.to_flat_state(net.params)
    return {dotted(path): joint for path, p in flat if (joint := joint_of(p)) is not None}


def test_rows_are_found_box_by_box() -> None:
    """Reading a box through a place, and cutting it out of what was joined, are the same."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(rows, 3)).astype(np.float32) for rows in (16, 4, 8)]
    names = ("a", "b", "c")
    tensors = {n: Tensor(p.shape, p.dtype, lambda p=p: p) for n, p in zip(names, parts)}
    for blocks in (1, 2, 4):
        joint = Joint(names, (16, 4, 8), ("heads",) * 3, blocks)
        whole = np.asarray(joint.join(parts))
        bound = Joined(tuple(map(Whole, names)), joint).bind(tensors)
        np.testing.assert_array_equal(bound.values(), whole)
        for start, more, step in rng.integers(0, 27, (40, 3)).tolist():
            box = (slice(start, start + more + 1, step + 1), slice(1, 3))
            np.testing.assert_array_equal(bound.read()[box], whole[box])
        for part, again in zip(parts, joint.split(whole), strict=True):
            np.testing.assert_array_equal(part, again)
        for device in range(blocks):  # its share is its share of every part
            mine = whole.reshape(blocks, -1, 3)[device]
            theirs = [p.reshape(blocks, -1, 3)[device] for p in parts]
            np.testing.assert_array_equal(mine, np.concatenate(theirs))
    with pytest.raises(ValueError, match="have other rows than"):
        Joined(tuple(map(Whole, names)), Joint(names, (8, 4, 8))).bind(tensors)


@pytest.mark.parametrize("family", JOINED)
def test_a_joined_network_computes_the_same(family: str) -> None:
    target = tiny.model(family)
    net = joined(target.net)
    assert joints(net) and not joints(target.net)
    tokens = jnp.asarray([[3, 1, 4, 1, 5, 9, 2, 6]] * 2, jnp.int32)
    run = jax.jit(lambda net: (net(tokens, taps=(1,)), net.head(net(tokens).hidden)))
    for ours, theirs in zip(jax.tree.leaves(run(net)), jax.tree.leaves(run(target.net))):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)
    again = separated(net)
    assert jax.tree.structure(again) == jax.tree.structure(target.net)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(target.net), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", thinned(["dflash", "lm", "eagle3", "mtp"], "lm", "eagle3", "mtp"))
def test_joined_drafters_guess_the_same(name: str) -> None:
    target, spec = tiny.model(), tiny.make(name)
    if name == "lm":
        spec = dataclasses.replace(spec, model=with_net(spec.model, joined(spec.model.net)))
    else:
        spec = dataclasses.replace(spec, net=joined(spec.net))
        assert joints(spec.net)
    how: dict[str, Any] = {"max_new_tokens": 10}
    want = specjax.generate(target, tiny.make(name), tiny.prompts(2), **how)
    got = specjax.generate(with_net(target, joined(target.net)), spec, tiny.prompts(2), **how)
    assert got.tokens == want.tokens and got.tau == want.tau


def test_a_context_is_one_product() -> None:
    """Of copies, as the block's products have the same rows: they are no part of what is saved."""
    net = tiny.make("dflash").net
    together = joined(net)
    found = joints(together)
    parts = [
        f"layers.{i}.self_attn.{part}_proj" for i in range(len(net.module.layers)) for part in "kv"
    ]
    copy = found["context_proj.weight"]
    assert copy.copied and list(copy.names) == parts
    assert [n for n in found if "qkv" in n] and repr(together) == repr(net)
    assert named_tensors(together.params, None).keys() == named_tensors(net.params, None).keys()
    again = separated(together)
    assert jax.tree.structure(again) == jax.tree.structure(net)
    features = jnp.asarray(
        np.random.default_rng(0).normal(size=(1, 3, net.module.fc.weight.shape[1]))
    )
    context = jax.jit(lambda net: net.module.context(features, jnp.arange(3)[None]))
    alike(context(together), context(net))

    # What the parts become, the copy becomes.
    name, (rows, width) = parts[1] + ".weight", net.module.layers[0].self_attn.v_proj.weight.shape
    side = {name: (jnp.ones((2, width)), jnp.ones((rows, 2)))}
    taken = jnp.ones(3, jnp.bool_)
    changed = context(together.adapted(side, taken))
    alike(changed, context(net.adapted(side, taken)))
    assert float(jnp.abs(changed[0][1] - context(net)[0][1]).max()) > 0.1
    edited, plain = together.module, net.module
    weight = edited.layers[0].self_attn.qkv_proj.weight
    weight[...] = 2 * weight[...]
    for part in (plain.layers[0].self_attn.k_proj, plain.layers[0].self_attn.v_proj):
        part.weight[...] = 2 * part.weight[...]
    alike(context(together.with_module(edited)), context(net.with_module(plain)))


def alike(ours: Any, theirs: Any) -> None:
    for got, want in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_side_paths_of_joined_weights() -> None:
    """An adapter names a weight of the checkpoint, whether it lies by itself or not."""
    net, tokens = tiny.model().net, jnp.asarray([[3, 1, 4, 1]], jnp.int32)
    together, rng = joined(net), np.random.default_rng(1)
    names = [f"layers.0.{n}.weight" for n in ("mlp.gate_proj", "mlp.up_proj", "self_attn.v_proj")]
    flat = {dotted(path): p.get_value() for path, p in nnx.to_flat_state(net.params)}
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    sizes = {name: flat[name].shape for name in names}
    adapters = {name: (draw(2, width), draw(rows, 2)) for name, (rows, width) in sizes.items()}
    taken = jnp.asarray([False, True, True, False])
    final = jax.jit(lambda net: net(tokens).hidden)
    want, plain = final(net.adapted(adapters, taken)), final(net)
    got = final(together.adapted(adapters, taken))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert float(jnp.abs(want - plain).max()) > 0.1


@pytest.mark.parametrize("family", ["qwen2", "qwen3_5_moe", "deepseek_v3"])
def test_export_writes_what_was_read(family: str, tmp_path: Path) -> None:
    save_pretrained(tiny.model(family).net.module, tmp_path / "a", dtype=jnp.bfloat16)
    for dtype in ("bfloat16", "float32"):
        model = specjax.load(tmp_path / "a", dtype=dtype)
        assert joints(model.net)
        save_pretrained(model.net.module, tmp_path / "b", dtype=jnp.bfloat16)
        read, written = (load_file(tmp_path / x / "model.safetensors") for x in "ab")
        assert read.keys() == written.keys()
        assert all(read[name].tobytes() == written[name].tobytes() for name in read)
    apart = specjax.load(tmp_path / "a", join=False)
    assert not joints(apart.net)
    assert hf_tensors(apart.net.module, jnp.bfloat16).keys() == read.keys()


def test_what_is_packed_is_joined_only_where_it_stays_packed() -> None:
    model = tiny.model(layers=3)

    def as_tensor(value: Any, pieces: Pieces | None = None) -> Tensor:
        array = np.asarray(value)
        return Tensor(array.shape, array.dtype, lambda: array, pieces)

    tensors = {}
    for name, value in hf_tensors(model.net.module, jnp.float32).items():
        tensors[name] = as_tensor(value)
        if ".layers." in name and value.ndim == 2 and "layers.0.mlp.up_proj" not in name:
            held = quantise(jnp.asarray(value), "int8")
            groups = 2 if "layers.1.self_attn.k_proj" in name else 1
            factors = as_tensor(np.repeat(held.factors, groups, axis=-1))
            packed = Pieces(as_tensor(held.values), factors)
            tensors[name] = as_tensor(held[...], packed)
    how: dict[str, Any] = {"dtype": np.dtype(np.float32), "mesh": None, "where": "here"}
    nets = [
        assemble(FAMILIES["llama"], model.config, tensors, packed=True, join=join, **how)
        for join in (True, False)
    ]
    apart = {"layers.0.mlp", "layers.1.self_attn"}  # of which one is plain, or grouped otherwise
    layers = {f"layers.{i}.{part}" for i in range(3) for part in ("mlp", "self_attn")}
    assert {name.rsplit(".", 2)[0] for name in joints(nets[0])} == layers - apart
    counts = [
        sum(isinstance(p.get_value(), Quantised) for _, p in nnx.to_flat_state(net.params))
        for net in nets
    ]
    assert counts == [20 - 2 * 2 - 2, 20]
    tokens = jnp.asarray([[3, 1, 4, 1, 5]], jnp.int32)
    ours, theirs = (jax.jit(lambda net: net(tokens).hidden)(net) for net in nets)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
