"""Gated DeltaNet and latent attention against Transformers' outputs for Qwen3.5 and DeepSeek-V3."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from specjax.checkpoint.safetensors_reader import read_directory
from specjax.core.cache import Cache, empty
from specjax.core.view import View
from specjax.models.layers.delta import DeltaConfig, GatedDeltaNet
from specjax.models.layers.latent import LatentAttention, LatentConfig
from specjax.models.layers.reading import Reading
from specjax.models.layers.rope import Rope, YarnScaling

Golden = dict[str, np.ndarray]
HIDDEN, STATE = 1e-4, 1e-5  # the gates that come with the reference outputs


class Weights:
    """The tensors of a checkpoint below a prefix, as float32."""

    def __init__(self, directory: Path, prefix: str):
        self.tensors = {
            name.removeprefix(prefix): np.asarray(tensor.read(), np.float32)
            for name, tensor in read_directory(directory).items()
            if name.startswith(prefix)
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensors[f"{name}.weight"]

    def fill(self, layer: nnx.Module, prefix: str) -> nnx.Module:
        """Puts in all tensors below ``prefix``; each has its place, and each place its tensor."""
        ours = {".".join(map(str, path)): p for path, p in nnx.to_flat_state(nnx.state(layer))}
        theirs = {
            n.removeprefix(prefix): x for n, x in self.tensors.items() if n.startswith(prefix)
        }
        assert ours.keys() == theirs.keys()
        for name, param in ours.items():
            assert param[...].shape == theirs[name].shape, name
            param[...] = jnp.asarray(theirs[name])
        return layer


def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weight * x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def mlp(x: np.ndarray, w: Weights, prefix: str) -> np.ndarray:
    up, gate, down = (w[f"{prefix}.{name}_proj"] for name in ("up", "gate", "down"))
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


@functools.partial(jax.jit, static_argnums=0)
def feed(graph: Any, params: Any, x: jax.Array, cache: Cache) -> Any:
    reading = Reading(cache.length, View.chain(x.shape[1]))
    return nnx.merge(graph, params)(x, cache.layers[0], None, reading)


commit = jax.jit(Cache.commit)


class Fed:
    """One layer with its memory, fed its inputs [T, D] bit by bit."""

    def __init__(self, layer: Any, inputs: np.ndarray):
        self.inputs, self.size = jnp.asarray(inputs)[None], len(inputs)
        self.layer = nnx.split(layer)
        self.cache = empty((layer.init_entry(1, self.size + 8, jnp.dtype(jnp.float32)),), 1)

    def take(self, num: int, wrong: int = 0) -> np.ndarray:
        """Feeds the next ``num`` inputs, and ``wrong`` others that are dropped -> [num, D]."""
        at = int(self.cache.length[0])
        x = self.inputs[:, at : at + num]
        if wrong:
            x = jnp.concatenate([x, 3.0 - self.inputs[:, :wrong]], axis=1)
        out, part = feed(*self.layer, x, self.cache)
        self.cache = commit(self.cache, (part,), jnp.asarray([num], jnp.int32))
        return np.asarray(out[0, :num])

    def take_all(self) -> np.ndarray:
        """In a chunk that ends in nothing of the text, then blocks of six, 0 to 6 of them right."""
        outs, num = [self.take(self.size // 2, 3)], 0
        while (left := self.size - int(self.cache.length[0])) > 0:
            num = min((num + 4) % 7, left)
            outs.append(self.take(num, 6 - num))
        return np.concatenate(outs)


# --- Qwen3.5 --------------------------------------------------------------------------------------

DELTA = DeltaConfig(
    hidden_size=64,
    key_heads=2,
    value_heads=6,
    key_head_dim=16,
    value_head_dim=8,
    taps=4,
    rms_norm_eps=1e-6,
)


def delta_layer(shared: Path, index: int) -> tuple[GatedDeltaNet, Weights, Golden]:
    folder = shared / "parity" / "qwen3-5"
    weights = Weights(folder, f"model.language_model.layers.{index}.")
    layer = GatedDeltaNet(DELTA, dtype=jnp.float32, rngs=nnx.Rngs(0))
    weights.fill(layer, "linear_attn.")
    return layer, weights, dict(np.load(folder / "golden.npz"))


@pytest.mark.parametrize("index", range(3))
def test_delta_net_of_qwen3_5(shared: Path, index: int) -> None:
    """Hidden states of a layer, in one pass and in blocks whose guesses were wrong."""
    layer, w, golden = delta_layer(shared, index)
    x, want = golden["hidden_states"][index : index + 2]
    inputs = norm(x, 1 + w["input_layernorm"])
    for mixed in (Fed(layer, inputs).take(len(x)), Fed(layer, inputs).take_all()):
        middle = x + mixed
        got = middle + mlp(norm(middle, 1 + w["post_attention_layernorm"]), w, "mlp")
        np.testing.assert_allclose(got, want, atol=HIDDEN, rtol=0)


def test_delta_state_after_each_prefix(shared: Path) -> None:
    """What is left of a block of which none, some or all was kept: the truth for rolling back."""
    layer, w, golden = delta_layer(shared, 0)
    inputs = norm(golden["hidden_states"][0], 1 + w["input_layernorm"])
    lens = golden["state_prefix_lens"].tolist()
    assert lens == list(range(lens[0], len(inputs) + 1)) and len(lens) == 7
    for kept, (length, conv, state) in enumerate(
        zip(lens, golden["conv_state_steps_L0"], golden["rec_state_steps_L0"])
    ):
        fed = Fed(layer, inputs)
        fed.take(lens[0] - 9)
        fed.take(9, 5)
        fed.take(kept, 6 - kept)
        entry = fed.cache.layers[0]
        assert fed.cache.length[0] == length
        np.testing.assert_allclose(entry.window[0].T, conv[:, 1:], atol=STATE, rtol=0)
        np.testing.assert_allclose(entry.state[0], state, atol=STATE, rtol=0)


# --- DeepSeek-V3 ----------------------------------------------------------------------------------

YARN = YarnScaling(
    factor=4.0,
    original_max_position_embeddings=256,
    beta_fast=4,
    beta_slow=1,
    mscale=1.0,
    mscale_all_dim=1.0,
)
LATENT = LatentConfig(
    hidden_size=64,
    num_heads=4,
    query_rank=40,
    rank=24,
    plain_dim=16,
    rotary_dim=8,
    value_dim=12,
    rope=Rope(500.0, YARN),
)


def experts(x: np.ndarray, w: Weights) -> np.ndarray:
    """DeepSeek-V3's mixture: 3 of 8, from the 2 best of 4 groups, and one that all share."""
    out = mlp(x, w, "mlp.shared_experts")
    scores = 1 / (1 + np.exp(-(x @ w["mlp.gate"].T)))
    chosen = scores + w.tensors["mlp.gate.e_score_correction_bias"]
    groups = np.sort(chosen.reshape(-1, 4, 2), -1)[..., -2:].sum(-1)
    kept = groups >= np.sort(groups, -1)[:, -2:-1]
    best = np.argsort(np.where(np.repeat(kept, 2, axis=1), chosen, -np.inf), -1)[:, -3:]
    for t, picked in enumerate(best):
        share = 2.5 * scores[t, picked] / scores[t, picked].sum()
        out[t] += sum(s * mlp(x[t], w, f"mlp.experts.{e}") for s, e in zip(share, picked))
    return out


@pytest.mark.parametrize("index", range(3))
def test_latent_attention_of_deepseek_v3(shared: Path, index: int) -> None:
    """Both forms: hidden states in one pass and in blocks with wrong guesses, and what is kept."""
    folder = shared / "parity" / "deepseek-v3"
    golden, w = dict(np.load(folder / "golden.npz")), Weights(folder, f"model.layers.{index}.")
    x, want = golden["hidden_states"][index : index + 2]
    if index == 2:  # the last of them is normed
        want = golden["last_prenorm"]
    inputs, outs = norm(x, w["input_layernorm"]), []
    for written in (True, False):
        layer = LatentAttention(LATENT, written=written, dtype=jnp.float32, rngs=nnx.Rngs(0))
        w.fill(layer, "self_attn.")
        fed = Fed(layer, inputs)
        outs += [Fed(layer, inputs).take(len(x)), fed.take_all()]
        entry = fed.cache.layers[0]
        for name, ours in (("k", entry.values), ("v", entry.keys)):
            if f"cache_{name}_L{index}" in golden:
                theirs = golden[f"cache_{name}_L{index}"]
                np.testing.assert_allclose(ours[:, :, : len(x)], theirs, atol=STATE, rtol=0)
    for mixed in outs:
        middle = x + mixed
        normed = norm(middle, w["post_attention_layernorm"])
        got = middle + (mlp(normed, w, "mlp") if index == 0 else experts(normed, w))
        np.testing.assert_allclose(got, want, atol=HIDDEN, rtol=0)
        np.testing.assert_allclose(mixed, outs[0], atol=2e-5, rtol=0)


def test_the_form_follows_the_number_of_queries() -> None:
    """Of DeepSeek-V3's own sizes: written out for a chunk of a prompt, compressed for a block."""
    published = LatentConfig(7168, 128, 1536, 512, 128, 64, 128, Rope(1e4))
    assert published.writes_out(256) and not published.writes_out(16)
    assert published.scale == 192**-0.5
    scaled = Rope(1e4, YarnScaling(40.0, 4096, mscale=1.0, mscale_all_dim=1.0))
    published = LatentConfig(7168, 128, 1536, 512, 128, 64, 128, scaled)
    assert published.scale == pytest.approx(192**-0.5 * (0.1 * np.log(40) + 1) ** 2)
