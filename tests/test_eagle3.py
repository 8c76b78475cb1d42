"""EAGLE-3: its network against reference outputs, its state, and training graph = inference graph."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from safetensors.flax import load_file

import specjax
from specjax import decode, session
from specjax.drafters.eagle3 import Eagle3, default_taps
from specjax.models import Frozen
from specjax.models.config import DecoderConfig, read_rope
from specjax.models.drafts.eagle3 import Eagle3Config, Eagle3Net, looking_back
from specjax.models.layers.attention import causal
from specjax.models.layers.rope import Rope
from specjax.sampling import Options

pytestmark = pytest.mark.usefixtures("quick_compile")

# --- the network against the references -----------------------------------------------------------


def read(folder: Path) -> tuple[dict[str, Any], dict[str, jax.Array], dict[str, np.ndarray]]:
    """Config, float32 tensors by our names, and golden arrays of a reference checkpoint."""
    raw = json.loads((folder / "config.json").read_text())
    tensors = {
        name.replace("midlayer.", "layers.0."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    return raw, tensors, dict(np.load(folder / "golden.npz"))


def fill(module: nnx.Module, tensors: dict[str, jax.Array]) -> set[str]:
    """Sets every weight by its name; the names that were not used."""
    left = set(tensors)
    for path, param in nnx.to_flat_state(nnx.state(module)):
        name = ".".join(map(str, path))
        assert param[...].shape == tensors[name].shape, name
        param[...] = tensors[name].astype(jnp.float32)
        left.remove(name)
    return left


def config_of(raw: dict[str, Any], taps: tuple[int, ...], draft_vocab: int, **flags: bool) -> Any:
    heads, width = raw["num_attention_heads"], raw["hidden_size"]
    theta = "rope_parameters" in raw or "rope_theta" in raw
    backbone = DecoderConfig(
        model_type="llama",
        vocab_size=raw["vocab_size"],
        hidden_size=width,
        intermediate_size=raw["intermediate_size"],
        num_layers=1,
        num_heads=heads,
        num_kv_heads=raw["num_key_value_heads"],
        head_dim=raw.get("head_dim", width // heads),
        rms_norm_eps=raw["rms_norm_eps"],
        rope=read_rope(raw) if theta else Rope(10000.0),
        tie_word_embeddings=False,
        max_position_embeddings=raw["max_position_embeddings"],
    )
    return Eagle3Config(backbone, taps, width, draft_vocab, **flags)


def target_table(shared: Path) -> jax.Array:
    tensors = load_file(shared / "parity" / "llama3" / "model.safetensors")
    return tensors["model.embed_tokens.weight"].astype(jnp.float32)


def test_the_authors_draft(shared: Path) -> None:
    """Fused features, states, logits and a greedy chain of SafeAILab's code."""
    raw, tensors, want = read(shared / "parity" / "eagle3-llama3")
    taps = tuple(int(t) for t in want["tap_layers"])
    net = Eagle3Net(config_of(raw, taps, 160), dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert fill(net, tensors) == {"d2t", "t2d"}
    target_ids = jnp.arange(160) + tensors["d2t"].astype(jnp.int32)
    table = target_table(shared)

    with jax.default_matmul_precision("highest"):
        g = net.fuse(jnp.asarray(want["taps"])[None])
        num = g.shape[1]
        tokens = jnp.asarray(want["input_ids"])[None, 1:]
        cache = net.init_cache(1, 64)
        positions = jnp.arange(num)[None]
        state, normed, block = net(
            g, table[tokens], positions, looking_back(cache, None, causal(num))
        )
        np.testing.assert_allclose(g[0], want["fc_out"], atol=1e-4)
        np.testing.assert_allclose(state[0], want["draft_hidden"], atol=1e-4)
        np.testing.assert_allclose(net.head(normed)[0], want["draft_logits"], atol=2e-4)

        cache, state, normed = cache.commit(block, jnp.full((1,), num)), state[:, -1:], normed[:, -1:]
        chain = []
        for i, logits in enumerate(want["chain_logits"]):
            ours = net.head(normed)[0, 0]
            np.testing.assert_allclose(ours, logits, atol=2e-4)
            chain.append(int(target_ids[ours.argmax()]))
            look = looking_back(cache, None, causal(1))
            token = jnp.full((1, 1), chain[-1])
            state, normed, block = net(state, table[token], jnp.full((1, 1), num + i), look)
            cache = cache.commit(block, jnp.ones((1,), jnp.int32))
    assert chain == want["chain_tokens"].tolist()
