"""On a mesh: the same text as on one device, and no array gathered that should stay split.

Run by tests/test_multidevice.py with eight fake CPU devices; alone:
XLA_FLAGS=--xla_force_host_platform_device_count=8 pytest tests/multidevice
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_families
from conftest import AS_USERS_DO, thinned
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from tiny_checkpoint import write_tiny

import specjax
from specjax import decode, drafters, session
from specjax.checkpoint import CheckpointError
from specjax.core.ops.write import WRITE_ALL, ByRow, Together, Write, one_by_one
from specjax.core.platform import Platform
from specjax.core.sharding import make_mesh, use_mesh
from specjax.drafters.dflash.net import DFlashNet
from specjax.drafters.lm import LM
from specjax.lab.compiler import hlo, traffic
from specjax.lab.compiler.abstract import abstract_net
from specjax.models.joining import separated
from specjax.models.joint import joint_of
from specjax.session import between

VOCAB, STEPS, ROWS = 32, 12, 8
PROMPTS = [p[:12] for p in tiny.prompts(ROWS, VOCAB)]

# Name -> drafter, options. Rows of temperature 0 ride along where others are hot.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": ("lm", {}),
    "block": ("lm", {"temperature": [0.0, 0.8, 1.3, 0.9] * 2}),
    "coupled": ("lm", {"temperature": [0.7, 1.1] * 4, "rule": "coupled"}),
    "lookup": ("ngram", {"temperature": [0.0, 0.8] * 4}),
}


# Mesh (data, model) -> cases. Compiling is the cost: every mesh, every case, not every pair.
MESHES = {(1, 8): ["block", "lookup"], (2, 4): ["odd", "block", "coupled"], (8, 1): ["lookup"]}
RUNS = [f"{data}x{model} {case}" for (data, model), cases in MESHES.items() for case in cases]


def target(layers: int = 1) -> specjax.Model:
    """8 heads; its 2 key/value heads are repeated where the model axis has more devices."""
    return tiny.model(vocab=VOCAB, layers=layers, heads=8, kv_heads=2)


def draft(heads: int = 8) -> specjax.Model:
    """One key/value head."""
    return tiny.model("qwen3", seed=7, vocab=VOCAB, layers=1, heads=heads, kv_heads=1)


def write_text(
    case: str, target: specjax.Model, draft: specjax.Model, rows: int = ROWS
) -> list[list[int]]:
    name, options = CASES[case]
    needs_model = drafters.DRAFTERS[name].needs_model
    drafter = drafters.make(name, model=draft if needs_model else None, num_draft=3)
    options = {k: v[:rows] if isinstance(v, list) else v for k, v in options.items()}
    return specjax.generate(
        target, drafter, PROMPTS[:rows], max_new_tokens=STEPS, seed=5, **options
    ).tokens


@functools.cache
def on_one_device(case: str) -> list[list[int]]:
    return write_text(case, target(), draft())


@functools.cache
def on_mesh(data: int, model: int) -> tuple[specjax.Model, specjax.Model]:
    mesh = make_mesh(data, model)
    return tiny.placed(target(), mesh), tiny.placed(draft(), mesh)


@functools.cache
def odd_draft(data: int, model: int) -> specjax.Model:
    """A draft that cannot be split, whole on every device."""
    return tiny.placed(draft(heads=3), make_mesh(data, model), replicate=True)


@pytest.mark.parametrize("run", thinned(RUNS, "1x8 lookup", "2x4 block"))
def test_text_is_that_of_one_device(run: str) -> None:
    axes, case = run.split()
    data, model = map(int, axes.split("x"))
    mesh = data, model
    big, small = on_mesh(*mesh)
    if case == "odd":  # greedy text is the same for all drafts
        case, small = "greedy", odd_draft(*mesh)
    want = on_one_device(case)
    assert len({tuple(t) for t in want}) == ROWS
    assert write_text(case, big, small) == want
    if case == MESHES[mesh][-1] and mesh[0] > 1:  # rows that the data axis does not divide
        assert write_text(case, big, small, rows=ROWS - 1) == want[:-1]


# Of dflash a part lies on each device, below.
@pytest.mark.parametrize("name", thinned(["dflash", "eagle3"], "dflash"))
def test_trained_drafters_on_a_mesh(name: str) -> None:
    """Whole on every device; they borrow tables that are split."""
    options = {"temperature": [0.0, 0.8, 1.3, 0.9] * 2} if name == "eagle3" else {}
    big, _ = on_mesh(2, 4)
    spec = tiny.fresh(name, 3, target())
    everywhere = NamedSharding(big.mesh, PartitionSpec())
    net = dataclasses.replace(jax.device_put(spec.net, everywhere), replicated=True)
    placed = dataclasses.replace(spec, net=net)
    kwargs = {"max_new_tokens": STEPS, "seed": 5, **options}
    want = specjax.generate(target(), spec, PROMPTS, **kwargs)
    assert specjax.generate(big, placed, PROMPTS, **kwargs).tokens == want.tokens
    assert len({tuple(t) for t in want.tokens}) == ROWS


def test_every_kind_of_memory_on_a_mesh() -> None:
    """A recurrent state and a window are split by heads, compressed vectors by rows alone."""
    alone = tiny_families.model("mixed", vocab=VOCAB, layers=3)
    mesh = make_mesh(2, 2)
    with tiny_families.listed():
        split = tiny.placed(alone, mesh)
    kwargs = {"max_new_tokens": STEPS, "temperature": [0.0, 1.0] * 4, "rule": "coupled"}
    want = specjax.generate(alone, "ngram:3", PROMPTS, **kwargs)
    assert specjax.generate(split, "ngram:3", PROMPTS, **kwargs).tokens == want.tokens
    assert len({tuple(t) for t in want.tokens}) == ROWS
    with use_mesh(mesh):
        made = jax.jit(lambda: split.net.init_cache(ROWS, 64))()
    recurrent, ring, latent = made.layers
    halves = [recurrent.state, recurrent.window, ring.keys, latent.values]
    shards = [x.addressable_shards[0].data.shape for x in halves]
    assert shards == [(4, 2, 6, 8), (4, 3, 28), (4, 1, 5, 8), (4, 1, 64, 6)]


@pytest.mark.parametrize("axes", [(2, 4), (4, 2)])
def test_a_trained_drafter_that_is_split(
    axes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heads, MLP and fusing layer over the model axis, as the compiler's report counts them.

    Where heads are not repeated, its context is one product, which the kernel that writes it into
    the cache, interpreted, cuts each device's own heads out of.
    """
    big, _ = on_mesh(*axes)
    spec = tiny.fresh("dflash", 3, target())
    backbone = spec.net.config.backbone.for_model_axis(axes[1])
    config = dataclasses.replace(spec.net.config, backbone=backbone)
    build = lambda: DFlashNet(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    places = abstract_net(build, big.mesh)
    given = dict(nnx.to_flat_state(spec.net.params))

    def value(path: Any, place: Any) -> jax.Array:
        joint = joint_of(place)
        whole = (
            given[path][...]
            if joint is None
            else joint.join([given[part][...] for part in joint.paths(path)])
        )
        return jax.device_put(whole, place.get_value().sharding)

    there = nnx.to_flat_state(places.params)
    flat = [(path, place.replace(value(path, place))) for path, place in there]
    net = dataclasses.replace(places, params=nnx.from_flat_state(flat))
    fc = net.module.fc.weight[...]
    assert fc.sharding.shard_shape(fc.shape)[0] == fc.shape[0] // axes[1]
    kwargs = {"max_new_tokens": STEPS, "seed": 5}
    want = specjax.generate(target(), spec, PROMPTS, **kwargs)
    together = net.module.joined("context_proj")
    assert (together is None) == (backbone.kv_repeat > 1) == (axes[1] == 4)
    if together is not None:
        assert together.joint.blocks == 2
        monkeypatch.setitem(WRITE_ALL.variants, "cpu", Together(interpret=True))
    got = specjax.generate(big, dataclasses.replace(spec, net=net), PROMPTS, **kwargs)
    assert got.tokens == want.tokens and got.tau == want.tau


@pytest.mark.parametrize("rows", [4, 1])
@pytest.mark.parametrize("axis", ["kv_heads", None])
def test_each_device_writes_long_blocks_into_its_own_rows(rows: int, axis: str | None) -> None:
    """As caches on TPUs are; of heads that are split, and of those that every device has."""
    rng, mesh = np.random.default_rng(0), make_mesh(2, 4)
    buffer, new = (jnp.asarray(rng.normal(size=(rows, 4, n, 6)), jnp.float32) for n in (30, 9))
    start = jnp.asarray([0, 21, 7, 3][:rows])
    (want,) = one_by_one([Write(buffer, new, start)], Platform("tpu"))
    place = PartitionSpec("data" if rows > 1 else None, "model" if axis else None)
    given = [jax.device_put(x, NamedSharding(mesh, place)) for x in (buffer, new)]
    put = lambda buffer, new, start: ByRow(long=9)([Write(buffer, new, start, axis)], None)[0]
    with use_mesh(mesh):
        compiled = jax.jit(put).lower(*given, start).compile()
        got = compiled(*given, jax.device_put(start, compiled.input_shardings[0][2]))
    np.testing.assert_array_equal(got, want)
    assert got.sharding.is_equivalent_to(given[0].sharding, 4)
    assert not collectives(compiled.as_text())


def test_parameters_and_caches_are_split_and_stay_where_they_are() -> None:
    """One eighth a device of what has a named axis; so is the state, and stays so."""
    big, _ = on_mesh(1, 8)
    layer = big.net.module.layers[0]
    shards = {
        "q_proj": (layer.self_attn.q_proj, (8, 32)),
        "k_proj": (layer.self_attn.k_proj, (16, 32)),  # repeated heads: whole
        "o_proj": (layer.self_attn.o_proj, (32, 8)),
        "gate_up_proj": (layer.mlp.gate_up_proj, (12, 32)),
        "down_proj": (layer.mlp.down_proj, (32, 6)),
        "head": (big.net.module.lm_head, (4, 32)),
        "embedding": (big.net.module.embed_tokens, (4, 32)),
    }
    for name, (linear, shape) in shards.items():
        assert linear.weight[...].sharding.shard_shape(linear.weight[...].shape) == shape, name
    s = one_session(*on_mesh(2, 4))
    s.advance(1)
    programs = decode.run_program._cache_size()
    s.advance(1)  # what comes out of a call is placed as what went in: nothing is compiled again
    s.finish([0])  # .. nor behind what the host writes
    s.advance(1)
    assert decode.run_program._cache_size() == programs
    for cache in (s.state.cache, s.state.draft):
        for buffer in jax.tree.leaves(cache.layers):
            assert buffer.shape[1] == 4 and buffer.sharding.shard_shape(buffer.shape)[:2] == (4, 1)
    places = [x.sharding for x in jax.tree.leaves(s.state)]
    with use_mesh(s.target.mesh):
        s.state = between.grow(s.drafter, s.state, slots=512)
    for x, place in zip(jax.tree.leaves(s.state), places, strict=True):
        assert x.sharding.is_equivalent_to(place, x.ndim)
    for _ in range(2):
        s.advance(1)
        assert decode.run_program._cache_size() == programs + 1  # of the larger state, one
    rows = [
        session.Row([*p, *new, 3], specjax.Options(temperature=0.8), 1, 150, ())
        for p, new in zip(PROMPTS, s.new_tokens(), strict=True)
    ]
    assert s.turn(rows) and min(s.kept) > 0  # another turn finds everything where it was
    s.advance(1)
    assert decode.run_program._cache_size() == programs + 1
    for x, place in zip(jax.tree.leaves(s.state), places, strict=True):
        assert x.sharding.is_equivalent_to(place, x.ndim)


def one_session(big: specjax.Model, small: specjax.Model | None) -> session.Session:
    rows = [
        session.Row(p, specjax.Options(temperature=[0.0, 0.8][b % 2]), 5 + b, STEPS, ())
        for b, p in enumerate(PROMPTS)
    ]
    name = "ngram" if small is None else "lm"
    return session.Session(big, drafters.make(name, model=small, num_draft=3), rows)


def test_a_draft_that_cannot_be_split_is_replicated() -> None:
    """Refused unless asked for so, in one line; and what is replicated talks to no other device."""
    mesh = make_mesh(2, 4)
    with pytest.raises(CheckpointError, match="num_heads=3; choose a divisor") as info:
        tiny.placed(draft(heads=3), mesh)
    assert "\n" not in str(info.value) and "--mesh=data:8,model:1 would do." in str(info.value)
    # Also where its heads could be split.
    whole = tiny.placed(
        tiny.model(vocab=VOCAB, layers=1, heads=4, kv_heads=4), mesh, replicate=True
    )
    assert whole.net.module.lm_head.weight[...].sharding.is_fully_replicated

    def step(net: Any, tokens: Any, cache: Any) -> Any:
        out = net(tokens, cache)
        return net.head(out.hidden), cache.commit(out.block, jnp.ones((ROWS,), jnp.int32))

    with use_mesh(mesh):
        cache = jax.jit(lambda net: net.init_cache(ROWS, 32))(whole.net)
        tokens = jax.device_put(
            jnp.zeros((ROWS, 2), jnp.int32), NamedSharding(mesh, PartitionSpec("data"))
        )
        program = jax.jit(step).lower(whole.net, tokens, cache).compile()
        after = program(whole.net, tokens, cache)[1]
    assert not collectives(program.as_text())
    for buffer in jax.tree.leaves((cache.layers[0], after.layers[0])):
        assert buffer.sharding.shard_shape(buffer.shape) == (ROWS // 2, 4, 32, 8)
    with pytest.raises(ValueError, match="on different devices") as info:
        write_text("greedy", on_mesh(2, 4)[0], draft())
    assert "\n" not in str(info.value)


def test_what_is_written_otherwise_for_tpus_is_the_same() -> None:
    """Sums over devices, and the scores that are formed twice where two cores share a device."""
    big, _ = on_mesh(1, 8)
    tokens = jnp.asarray([p[:6] for p in PROMPTS if len(p) >= 6], jnp.int32)

    def logits(net: Any, tokens: Any) -> Any:
        cache = net.init_cache(tokens.shape[0], 16)
        block = net(tokens[:, :2], cache).block
        cache = cache.commit(block, jnp.full(tokens.shape[:1], 2, jnp.int32))
        return net.head(net(tokens[:, 2:], cache).hidden)

    with use_mesh(big.mesh):
        want = jax.jit(logits)(big.net, tokens)
        tpu = big.net.on(Platform("tpu", cores=2))
        assert "optimization_barrier" in jax.jit(logits).lower(tpu, tokens).as_text()
        got = jax.jit(logits)(tpu, tokens)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_ties_across_shards_go_to_the_lowest_id() -> None:
    mesh = make_mesh(1, 8)
    logits = np.zeros((3, VOCAB), np.float32)
    for row, places in enumerate([(6, 22), (31, 30, 9), (0, 28)]):
        logits[row, list(places)] = 1.0
    x = jax.device_put(logits, NamedSharding(mesh, PartitionSpec(None, "model")))
    assert jax.jit(lambda x: x.argmax(-1))(x).tolist() == [6, 9, 0]

    # End to end: two rows of the head are the same, in different shards.
    favourite = np.bincount(np.concatenate(on_one_device("greedy"))[:], minlength=VOCAB)
    first = int(favourite[: VOCAB // 2].argmax())
    twin = first + VOCAB // 2
    net = target().net
    module = nnx.merge(net.graphdef, net.params)
    head = module.lm_head.weight[...]
    module.lm_head.weight = nnx.Param(head.at[twin].set(head[first]), axes=("vocab", None))
    tied = dataclasses.replace(target(), net=type(net).of(module))
    want = write_text("greedy", tied, draft())
    said = {t for row in want for t in row}
    assert first in said and twin not in said
    assert write_text("greedy", tiny.placed(tied, mesh), on_mesh(1, 8)[1]) == want


@pytest.mark.parametrize("axis,field", [(3, "num_heads=8"), (16, "devices")])
def test_a_mesh_that_does_not_divide_is_refused(axis: int, field: str) -> None:
    with pytest.raises(ValueError, match=field) as info:
        tiny.placed(target(), make_mesh(1, axis))
    assert "\n" not in str(info.value)


def test_a_checkpoint_is_loaded_in_slices(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny")
    split = specjax.load(path, mesh="data:4,model:2", join=False)
    whole = specjax.load(path, mesh="data:4,model:2", replicate=True, join=False)
    plain = specjax.load(path, join=False)
    flat = [dict(nnx.to_flat_state(m.net.params)) for m in (plain, split, whole)]
    for place, param in flat[0].items():
        a, b = flat[1][place][...], flat[2][place][...]
        np.testing.assert_array_equal(param[...], a)
        np.testing.assert_array_equal(param[...], b)
        assert b.sharding.is_fully_replicated
        halves = math.prod(a.shape) // math.prod(a.sharding.shard_shape(a.shape))
        kept_whole = any(n in place for n in ("k_proj", "v_proj")) or a.ndim == 1
        assert halves == (1 if kept_whole else 2), place
    together = specjax.load(path, mesh="data:4,model:2").net
    weight = together.params["layers"][0]["mlp"]["gate_up_proj"]["weight"][...]
    assert math.prod(weight.sharding.shard_shape(weight.shape)) == weight.size // 2
    for place, param in nnx.to_flat_state(separated(together).params):
        np.testing.assert_array_equal(param[...], flat[0][place][...])


def collectives(text: str) -> list[tuple[str, list[int]]]:
    """(operation, number of elements of each result) of an optimised program's communication."""
    names = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    found = []
    for shape, name in re.findall(rf"= (.+?) ({names})(?:-start)?\(", text):
        sizes = [
            math.prod(map(int, d.split(",") if d else []))
            for d in re.findall(r"\[([\d,]*)\]", shape)
        ]
        found.append((name, sizes))
    return found


def test_the_verify_pass_is_one_sharded_forward() -> None:
    """In the program that users run: two sums a layer, and nothing big crosses devices."""
    layers = 2
    s = one_session(tiny.placed(target(layers), make_mesh(1, 8)), None)
    args = (s.target.net, s.drafter, s.rule, s.request, s.state, jnp.int32(4))
    with use_mesh(s.target.mesh):
        lowered = decode.run_program.lower(*args)
        text = lowered.compile(compiler_options=AS_USERS_DO).as_text()
    found = collectives(text)
    module = hlo.parse(text)
    counted = traffic.collectives(module, module.entry)
    kinds = [name for name, _ in found]
    assert {k: entry.count for k, entry in counted.items()} == {k: kinds.count(k) for k in kinds}
    # The largest thing that may cross: one activation of the block, [B, K + 1, D or V].
    activation = ROWS * 4 * max(32, VOCAB)
    assert (
        activation <= 32 * 32 < s.state.cache.layers[0].keys.size // 8
    )  # a weight, a device's cache
    for name, sizes in found:
        assert max(sizes) <= activation, (name, sizes)
    # Sums after o_proj and down_proj, and one for the embedding. The best of the vocabulary is
    # found on each device and then among the devices.
    sums = [sizes for name, sizes in found if name == "all-reduce"]
    assert 2 * layers < len(sums) <= 2 * layers + 2
    assert all(max(sizes) < activation for name, sizes in found if name != "all-reduce")


def test_rows_that_change_hands_on_a_mesh() -> None:
    """Three prompts together on two devices of the data axis: one row only fills the mesh."""
    one, prompts = target(), tiny.prompts(7, VOCAB)
    how: dict[str, Any] = {"rule": "coupled"}
    how |= {"max_new_tokens": [20, 4, 9, 16, 3, 12, 7], "seed": 2, "temperature": 0.7}
    want = specjax.generate(one, LM(tiny.near(one), 2), prompts, **how)
    split, _ = on_mesh(2, 4)
    near = tiny.placed(tiny.near(one), split.mesh)
    got = specjax.generate(split, LM(near, 2), prompts, batch_size=3, **how)
    assert got.tokens == want.tokens
    accepted = [[[c.accepted for c in row] for row in out.trace.rows] for out in (got, want)]
    assert accepted[0] == accepted[1]
