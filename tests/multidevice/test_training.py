"""A training step on a mesh is the step of one device, and its state is split over the devices."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from test_train_lm import MODEL
from test_train_lm import fresh as fresh_lm

from specjax.core import sharding
from specjax.core.sharding import make_mesh, use_mesh
from specjax.train import next_token
from specjax.train.checkpoints import Checkpoints
from specjax.train.data.batches import Batches
from specjax.train.data.packing import Packed
from specjax.train.data.rows import Fixed, Row, Windows
from specjax.train.drafter import Trainee, fresh
from specjax.train.optimizer import make_optimizer, schedule
from specjax.train.state import init_state, place, shardings_of
from specjax.train.step import make_step

VOCAB = 32
DRAFT = {
    **tiny.RAW,
    "model_type": "llama",
    "vocab_size": VOCAB,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CASES = {
    "lm": (DRAFT, {}, "layers.0.mlp.up_proj.weight"),
    "dflash": ({"layers": 1}, {"anchors": 4, "chunk": 2}, "layers.0.mlp.up_proj.weight"),
}


@pytest.mark.parametrize("kind", CASES)
def test_steps_on_a_mesh_are_those_of_one_device(kind, monkeypatch):
    monkeypatch.setattr(sharding, "_LEAST", 1)
    sizes, hyper, split = CASES[kind]
    stream = np.random.default_rng(0).integers(0, VOCAB, 400)
    rows: Any = Windows(stream, 16, where="text")
    if kind == "dflash":  # several texts a row
        pieces = np.split(stream.astype(np.int32), np.arange(5, 400, 6))
        rows = Packed(Fixed([Row(x, np.arange(len(x)) > 0) for x in pieces]), 16, seed=0)
    found: list[tuple[list[float], Any]] = []
    for mesh in (None, make_mesh(data=2, model=4), make_mesh(data=2, fsdp=2, model=2)):
        target = tiny.model("llama", vocab=VOCAB)
        target = target if mesh is None else tiny.placed(target, mesh)
        with use_mesh(mesh):
            spec = fresh(kind, target, sizes, num_draft=3, seed=0)
            trainee, params = Trainee.of(kind, spec, hyper, num_draft=3, compute_dtype=jnp.float32)
            rate = schedule(peak_lr=1e-2, warmup_steps=1, steps=9)
            optimizer = make_optimizer("adamw", rate, weight_decay=0.0, clip_norm=1.0)
            state = place(init_state(params, optimizer), trainee.skeleton)
            data = Batches(rows, micro=4, accumulate=1, seq_len=16, seed=0)
            step: Any = make_step(trainee.objective, optimizer, shardings=shardings_of(state))
            if mesh is not None and kind == "dflash":
                # Between processes on CPU it would be silently wrong (jax issue 40830).
                step = step.lower(state, next(data), target.net).compile()
                text = step.as_text()
                assert "all-reduce" in text and "reduce-scatter" not in text
                data = Batches(rows, micro=4, accumulate=1, seq_len=16, seed=0)
            losses = []
            for _ in range(3):
                batch = next(data)
                shape = batch.tokens.addressable_shards[0].data.shape
                split_in = 1 if mesh is None else 2 * mesh.shape.get("fsdp", 1)
                assert shape == (1, 4 // split_in, 16)
                state, sums = step(state, batch, target.net)
                losses.append(float(sums["loss"] / sums["weight"]))
        found.append((losses, jax.device_get(state.params)))
        sizes_of = {} if mesh is None else dict(mesh.shape)
        parts = sizes_of.get("model", 1), sizes_of.get("fsdp", 1)
        moments = jax.tree.leaves(optax.tree.get(state.opt_state, "mu"))
        for weight in (state.params[split], moments[list(state.params).index(split)]):
            shape = weight.addressable_shards[0].data.shape
            assert shape == tuple(n // k for n, k in zip(weight.shape, parts, strict=True))
    losses, params = found[0]
    assert losses[2] != losses[0]
    for sharded_losses, sharded_params in found[1:]:
        np.testing.assert_allclose(losses, sharded_losses, rtol=1e-4)
        # Adam divides by the size of a gradient: where that is rounding alone, its step may turn.
        for name, value in params.items():
            assert np.abs(value - sharded_params[name]).mean() < 1e-4, name


def test_a_step_without_a_target_is_the_same_and_another_mesh_goes_on(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    batch = jax.random.randint(jax.random.key(0), (1, 4, 9), 0, MODEL["vocab_size"])
    losses = []
    for mesh in (None, make_mesh(data=2, model=2)):
        with use_mesh(mesh):
            skeleton, state, optimizer, _ = fresh_lm()
            state = place(state, skeleton)
            objective = next_token.make_objective(skeleton, compute_dtype=jnp.float32)
            step = make_step(objective, optimizer)
            for _ in range(3):
                state, sums = step(state, batch, None)
                if int(state.step) == 2 and mesh is None:
                    checkpoints.save(state, {"next": 2})
            losses.append(float(sums["loss"]))
            if mesh is not None:
                restored = checkpoints.restore(state)
                assert restored.data == {"next": 2} and restored.step == 2
                state, sums = step(restored.state, batch, None)
                losses.append(float(sums["loss"]))
                up = state.params["layers.0.mlp.up_proj.weight"]
                assert up.addressable_shards[0].data.shape == (32, 32), up.sharding
    checkpoints.close()
    np.testing.assert_allclose(losses, losses[0], rtol=1e-4)


def test_a_batch_that_the_mesh_does_not_divide_is_refused():
    with use_mesh(make_mesh(data=4)), pytest.raises(ValueError, match="4 data shards"):
        rows = Windows(np.arange(99), 16, where="text")
        Batches(rows, micro=2, accumulate=1, seq_len=16, seed=0)


def test_a_checkpoint_goes_on_on_another_mesh(tmp_path, monkeypatch):
    """Written in parts by one mesh, read in those of another, and by one device."""
    monkeypatch.setattr(sharding, "_LEAST", 1)
    optimizer = optax.adam(1e-3)
    kept = None
    for mesh in (make_mesh(fsdp=4, model=2), make_mesh(data=2, fsdp=2), make_mesh(model=8), None):
        with use_mesh(mesh):
            skeleton, params = next_token.build(DRAFT, 0 if kept is None else 1, model_axis=1)
            state = place(init_state(params, optimizer), skeleton)
            checkpoints = Checkpoints(tmp_path / "checkpoints")
            if kept is None:
                kept = jax.device_get(dataclasses.replace(state, step=jnp.int32(5)))
                checkpoints.save(dataclasses.replace(state, step=jnp.int32(5)), {"next": 5})
            found = checkpoints.restore(state)
            checkpoints.close()
        assert found.step == 5 and found.data == {"next": 5}
        for old, new, like in zip(*map(jax.tree.leaves, (kept, found.state, state)), strict=True):
            np.testing.assert_array_equal(old, new)
            assert new.sharding.is_equivalent_to(like.sharding, new.ndim)
        if mesh is not None and "fsdp" in mesh.axis_names:
            assert not found.state.params["embed_tokens.weight"].sharding.is_fully_replicated
