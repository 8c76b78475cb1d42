"""EAGLE-3: its network against reference outputs; its state; training graph = inference graph."""

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
from specjax.core.types import Array, Proposal, pytree
from specjax.drafters.base import Context
from specjax.drafters.eagle3 import Eagle3, Eagle3Drafter
from specjax.models import Frozen
from specjax.models.config import DecoderConfig, read_rope
from specjax.models.drafts.eagle3 import Eagle3Config, Eagle3Net, looking_back
from specjax.models.layers.attention import causal
from specjax.models.layers.rope import Rope
from specjax.sampling import Counts, Options, make_sampling
from specjax.train.lm import Skeleton
from specjax.train.objectives.base import Batch
from specjax.train.objectives.eagle3 import Eagle3Objective
from specjax.train.replay import replay

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

    tokens = jnp.asarray(want["input_ids"])[None, 1:]
    num = tokens.shape[1]

    @jax.jit
    def run(net: Frozen, taps: Array) -> Any:
        net = net.module
        g, cache = net.fuse(taps), net.init_cache(1, 32)
        look = looking_back(cache, None, causal(num))
        state, normed, block = net(g, table[tokens], jnp.arange(num)[None], look)
        cache = cache.commit(block, jnp.full((1,), num))

        def step(carry: Any, i: Array) -> Any:
            state, normed, cache = carry
            logits = net.head(normed)[:, -1]
            token = target_ids[logits.argmax(-1)]
            look = looking_back(cache, None, causal(1))
            state, normed, block = net(state, table[token[:, None]], (num + i)[None, None], look)
            return (state, normed, cache.commit(block, jnp.ones((1,), jnp.int32))), (token, logits)

        _, chain = jax.lax.scan(step, (state[:, -1:], normed[:, -1:], cache), jnp.arange(5))
        return g, state, net.head(normed), chain

    with jax.default_matmul_precision("highest"):
        g, state, logits, chain = run(Frozen.of(net), jnp.asarray(want["taps"])[None])
    np.testing.assert_allclose(g[0], want["fc_out"], atol=1e-4)
    np.testing.assert_allclose(state[0], want["draft_hidden"], atol=1e-4)
    np.testing.assert_allclose(logits[0], want["draft_logits"], atol=2e-4)
    np.testing.assert_allclose(chain[1][:, 0], want["chain_logits"], atol=2e-4)
    assert (chain[0][:, 0] == want["chain_tokens"]).all()


def test_training_steps_of_speculators(shared: Path) -> None:
    """Three steps of training-time test of the speculators package, its norms and RoPE included."""
    raw, tensors, want = read(shared / "parity" / "speculators-eagle3-llama3")
    config = config_of(
        raw["transformer_layer_config"],
        tuple(raw["eagle_aux_hidden_state_layer_ids"]),
        raw["draft_vocab_size"],
        norm_before_fc=True,
        norm_before_residual=True,
        own_embedding=True,
    )
    net = Eagle3Net(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert fill(net, tensors) == {"d2t", "t2d"}
    skeleton, _ = Skeleton.of(net)
    steps, num, _ = want["ttt_logits"].shape
    objective = Eagle3Objective(skeleton, config, jnp.float32, num_draft=steps)
    # Their column t is ours t + 1: we have one more in front, for prompts of one token.
    tokens = jnp.asarray(want["input_ids"])[None]
    batch = Batch(tokens, jnp.ones_like(tokens, jnp.bool_), jnp.full((1,), num + 1))

    @jax.jit
    def run(net: Frozen, taps: Array) -> Array:
        fused = jnp.pad(net.module.fuse(taps), ((0, 0), (0, 1), (0, 0)))
        return net.module.head(objective.unroll(net.module, batch, fused, net))[:, 0, 1:]

    with jax.default_matmul_precision("highest"):
        logits = run(Frozen.of(net), jnp.asarray(want["taps"])[None])
    for j in range(steps):
        known = num - j  # behind the text's end they feed something else
        np.testing.assert_allclose(logits[j, :known], want["ttt_logits"][j, :known], atol=2e-4)
        assert (logits[j, :known].argmax(-1) == want["ttt_draft_ids"][j, :known]).all()


# --- the drafter, the objective and its replay ----------------------------------------------------

K = 3
VARIANTS = {
    "plain": {},
    "all": {
        "target_ids": np.arange(0, 31, 2),
        "layers": 2,
        "norm_before_fc": True,
        "norm_before_residual": True,
        "fc_norm": True,
        "norm_output": True,
    },
}


def spec_of(variant: str, num_draft: int = K) -> Eagle3:
    """A draft of the tiny target whose norms are not all ones."""
    spec = Eagle3.fresh(tiny.model(), num_draft=num_draft, seed=1, **VARIANTS[variant])
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda x: x * jnp.asarray(rng.uniform(0.7, 1.3, x.shape), x.dtype), spec.net.params
    )
    return dataclasses.replace(spec, net=dataclasses.replace(spec.net, params=params))


def objective_of(spec: Eagle3, **kwargs: Any) -> tuple[Eagle3Objective, dict[str, Array]]:
    skeleton, params = Skeleton.of(spec.net.module)
    kwargs = {"chunk": 7, "num_draft": spec.num_draft} | kwargs
    objective = Eagle3Objective(
        skeleton, spec.net.config, jnp.float32, target_ids=spec.target_ids, **kwargs
    )
    return objective, params


@pytree
class Forced(Eagle3Drafter):
    """Guesses what a text says, and shows the states that it would have guessed from."""

    text: Array = None  # type: ignore[assignment]  # [B, T]

    def _draw(
        self, normed: Array, index: Array, counts: Counts | None, context: Context
    ) -> tuple[Array, Array | None]:
        place = context.length[:, None] + index
        return jnp.take_along_axis(self.text, place, axis=1)[:, 0], normed[:, 0]


def forced(spec: Eagle3, text: Array) -> Forced:
    bound = spec.bind(tiny.model(), "one_hot")
    return Forced(
        net=bound.net,
        vocabulary=bound.vocabulary,
        target_ids=bound.target_ids,
        num_draft=bound.num_draft,
        kind="sampled",
        text=text,
    )


def ask(drafter: Forced, draft: Any, length: Array) -> tuple[Proposal, Any]:
    rows = len(length)
    sampling = make_sampling([Options()] * rows, 31)
    keys = jax.random.split(jax.random.key(0), rows)
    return drafter.propose(draft, Context(drafter.text, length, keys, sampling, None))


def prefilled(drafter: Forced, features: Array, length: Array, slots: int) -> Any:
    """The state of prompts of ``length`` [B], fed in two chunks."""
    draft, half = drafter.init(len(length), slots), drafter.text.shape[1] // 2
    for start in (0, half):
        chunk = slice(start, start + half)
        count = jnp.clip(length - 1 - start, 0, half)
        draft = drafter.prefill(draft, drafter.text[:, chunk], count, features[:, chunk])
    return draft


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_graph_is_inference_graph(variant: str) -> None:
    """Every state of every step and position, and again after updates of random counts."""
    target, width = tiny.model(), 20
    spec = spec_of(variant)
    objective, params = objective_of(spec)
    rng = np.random.default_rng(5)
    text = jnp.asarray(rng.integers(0, 31, (1, width)), jnp.int32)
    batch = Batch(text, jnp.ones_like(text, jnp.bool_), jnp.full((1,), width))

    # One row a position: pending token 0, 1, .., all at once.
    lengths = jnp.arange(1, width - K + 1)
    rows = len(lengths)
    drafter = forced(spec, jnp.broadcast_to(text, (rows, width)))

    @jax.jit
    def whole(params: Any, drafter: Forced) -> tuple[Array, Array, Proposal]:
        net = objective.skeleton.module(params)
        _, fused = objective._features(net, batch, target.net)
        states = objective.unroll(net, batch, fused, target.net)[:, 0]  # [K, T, D]
        _, features, _ = target.net.hidden(drafter.text, None, taps=drafter.taps)
        draft = prefilled(drafter, features, lengths, width + K + 1)
        return states, features, ask(drafter, draft, lengths)[0]

    states, features, proposal = whole(params, drafter)
    want = states.swapaxes(0, 1)[:rows]
    assert float(jnp.abs(want).max()) > 0.5
    np.testing.assert_allclose(proposal.q, want, atol=1e-5)

    # From a prompt on, counts 0 to K + 1 in every cycle: a count of 0 must change nothing.
    @jax.jit
    def cycle(drafter: Forced, draft: Any, length: Array, count: Array) -> tuple[Any, Any]:
        proposal, draft = ask(drafter, draft, length)
        place = (length - 1)[:, None] + jnp.arange(K + 1)[None, :]
        fed = jnp.take_along_axis(drafter.text, place, axis=1)
        seen = jnp.take_along_axis(features, place[..., None], axis=1)
        return proposal.q, drafter.update(draft, fed, count, length + count, seen)

    start = jnp.asarray(rng.integers(1, 5, rows), jnp.int32)
    draft, length = jax.jit(prefilled, static_argnums=3)(drafter, features, start, width), start
    for _ in range(5):
        most = jnp.minimum(K + 1, width - K - length)
        count = jnp.asarray(rng.integers(0, np.asarray(most) + 1), jnp.int32)
        q, draft = cycle(drafter, draft, length, count)
        np.testing.assert_allclose(q, want[length - 1], atol=1e-5)
        length = length + count
        assert (draft.cache.length + draft.waiting == length - 1).all()
    fresh = jax.jit(prefilled, static_argnums=3)(drafter, features, length, width)
    read = jnp.arange(width)[None, :] < jnp.minimum(draft.cache.length, fresh.cache.length)[:, None]
    for ours, theirs in zip(draft.cache.k + draft.cache.v, fresh.cache.k + fresh.cache.v):
        differ = jnp.where(read[:, None, :, None], ours - theirs, 0.0)
        assert float(jnp.abs(differ).max()) < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_predicted_cycles_are_the_real_ones(variant: str) -> None:
    """`matches` over the target's greedy texts gives every cycle of real speculation."""
    target, prompts, new = tiny.model(), tiny.prompts(4), 40
    spec = spec_of(variant)
    out = specjax.generate(target, spec, prompts, max_new_tokens=new)
    texts = [p + t for p, t in zip(prompts, out.tokens)]
    lengths = np.array([len(t) for t in texts])
    tokens = jnp.asarray([t + [0] * (max(lengths) - len(t)) for t in texts], jnp.int32)
    batch = Batch(tokens, jnp.ones_like(tokens, jnp.bool_), jnp.asarray(lengths))
    objective, params = objective_of(spec)
    matches = np.asarray(jax.jit(objective.matches)(params, batch, target.net))
    guessed = replay(matches, np.array([len(p) for p in prompts]), lengths)
    assert guessed.committed == 4 * new and guessed.cycles == out.trace.num_cycles
    assert out.tau > 1.0
    for b, cycles in enumerate(out.trace.rows):
        for c in cycles[:-1]:  # the last one is cut by the limit
            want = int(np.cumprod(matches[b, c.position - 1]).sum())
            assert c.accepted == want
