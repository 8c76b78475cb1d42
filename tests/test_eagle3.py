"""EAGLE-3: its network against reference outputs; its state; training graph = inference graph."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import checks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from safetensors.flax import load_file

import specjax
from specjax.core.types import Array, Kept, Proposal, pytree
from specjax.core.view import View
from specjax.drafters.base import Context
from specjax.drafters.eagle3 import Eagle3, Eagle3Drafter, default_taps
from specjax.drafters.eagle3.net import Eagle3Config, Eagle3Net
from specjax.drafters.eagle3.objective import Eagle3Objective
from specjax.models import Frozen
from specjax.models.config import DecoderConfig, read_rope
from specjax.models.layers.rope import Rope
from specjax.sampling import Counts, Options, make_sampling
from specjax.train.objectives.base import Batch
from specjax.train.state import Skeleton

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
        state, normed, block = net(g, table[tokens], cache, View.chain(num))
        cache = cache.commit(block, jnp.full((1,), num))

        def step(carry: Any, _: Array) -> Any:
            state, normed, cache = carry
            logits = net.head(normed)[:, -1]
            token = target_ids[logits.argmax(-1)]
            state, normed, block = net(state, table[token[:, None]], cache, View.chain(1))
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
    "latent": {"latent": True, "norm_output": True},
}


def target_of(variant: str) -> specjax.Model:
    return tiny.model("deepseek_v3" if variant == "latent" else "llama")


@functools.cache
def spec_of(variant: str, num_draft: int = K) -> Eagle3:
    """A draft of the tiny target whose norms are not all ones."""
    spec = Eagle3.fresh(target_of(variant), num_draft=num_draft, seed=1, **VARIANTS[variant])
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

    def draw(
        self, normed: Array, index: Array, counts: Counts | None, context: Context
    ) -> tuple[Array, Array | None]:
        place = context.length[:, None] + index
        return jnp.take_along_axis(self.text, place, axis=1)[:, 0], normed[:, 0]


def forced(spec: Eagle3, text: Array, target: specjax.Model) -> Forced:
    bound = spec.bind(target, "one_hot")
    return Forced(
        net=bound.net,
        vocabulary=bound.vocabulary,
        target_ids=bound.target_ids,
        num_draft=bound.num_draft,
        kind="sampled",
        text=text,
    )


def ask(
    drafter: Eagle3Drafter, draft: Any, text: Array, length: Array, temperature: float = 0.0
) -> tuple[Proposal, Any]:
    rows = len(length)
    sampling = make_sampling([Options(temperature=temperature)] * rows, 31)
    keys = jax.random.split(jax.random.key(0), rows)
    return drafter.propose(draft, Context(text, length, keys, sampling, None))


@jax.jit
def feed(drafter: Forced, draft: Any, start: Array, features: Array, length: Array) -> Any:
    """Half of the prompts of ``length`` [B]."""
    half = drafter.text.shape[1] // 2
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, half, axis=1)
    count = jnp.clip(length - 1 - start, 0, half)
    return drafter.prefill(draft, cut(drafter.text), count, cut(features))


@jax.jit
def cycle(
    drafter: Forced, draft: Any, features: Array, length: Array, count: Array
) -> tuple[Array, Any]:
    """The states [B, K, D] that guesses come from, and the state after ``count`` [B] tokens."""
    proposal, held = ask(drafter, draft, drafter.text, length)
    place = (length - 1)[:, None] + jnp.arange(K + 1)[None, :]
    fed = jnp.take_along_axis(drafter.text, place, axis=1)
    seen = jnp.take_along_axis(features, place[..., None], axis=1)
    return proposal.q, drafter.update(held, Kept(fed, count, seen))


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_graph_is_inference_graph(variant: str) -> None:
    """Every state of every step and position, and again after updates of random counts."""
    target, width = target_of(variant), 20
    spec = spec_of(variant)
    objective, params = objective_of(spec)
    rng = np.random.default_rng(5)
    text = jnp.asarray(rng.integers(0, 31, (1, width)), jnp.int32)
    batch = Batch(text, jnp.ones_like(text, jnp.bool_), jnp.full((1,), width))

    @jax.jit
    def train(params: Any) -> tuple[Array, Array]:
        net = objective.skeleton.module(params)
        features = target.net(text, taps=spec.net.config.taps).features
        _, fused = objective._features(net, batch, target.net)
        return objective.unroll(net, batch, fused, target.net)[:, 0].swapaxes(0, 1), features

    # One row a position: pending token 0, 1, .., all at once.
    want, features = train(params)  # [T, K, D]
    length = jnp.arange(1, width - K + 1)
    rows = len(length)
    drafter = forced(spec, jnp.broadcast_to(text, (rows, width)), target)
    features = jnp.broadcast_to(features, (rows, *features.shape[1:]))

    def prefilled(length: Array) -> Any:
        draft = drafter.init(rows, width + K + 1)
        for start in (0, width // 2):
            draft = feed(drafter, draft, jnp.int32(start), features, length)
        return draft

    q, _ = cycle(drafter, prefilled(length), features, length, jnp.zeros_like(length))
    assert float(jnp.abs(want).max()) > 0.5
    np.testing.assert_allclose(q, want[:rows], atol=1e-5)

    # From short prompts on, counts 0 to K + 1 in every cycle: a count of 0 must change nothing.
    length = jnp.asarray(rng.integers(1, 5, rows), jnp.int32)
    draft = prefilled(length)
    for _ in range(5):
        most = jnp.minimum(K + 1, width - K - length)
        count = jnp.asarray(rng.integers(0, np.asarray(most) + 1), jnp.int32)
        q, draft = cycle(drafter, draft, features, length, count)
        np.testing.assert_allclose(q, want[length - 1], atol=1e-5)
        length = length + count
        assert (draft.cache.length + draft.waiting == length - 1).all()
    fresh = prefilled(length)
    held = np.minimum(draft.cache.length, fresh.cache.length)
    both = (jax.tree.leaves(x.cache.layers) for x in (draft, fresh))
    for ours, theirs in zip(*both, strict=True):
        for b in range(rows):
            np.testing.assert_allclose(ours[b, :, : held[b]], theirs[b, :, : held[b]], atol=1e-5)


def test_predicted_cycles_are_the_real_ones() -> None:
    """`matches` over the target's greedy texts gives every cycle of real speculation."""
    spec = spec_of("all")
    matches, out = checks.predicted_cycles(tiny.model(), spec, *objective_of(spec))
    checks.accepted_as_predicted(matches, out)
    assert out.tau > 1.0
    own = set(VARIANTS["all"]["target_ids"].tolist())
    for cycles in out.trace.rows:
        for c in cycles:
            assert set(c.proposed) <= own


def test_a_reduced_vocabulary_has_an_exact_law() -> None:
    """Drawn guesses, also behind a prompt of one token: q is 0 outside, and is what was drawn."""
    target = tiny.model()
    drafter = spec_of("all").bind(target, "sampled")
    rows = 64
    text = jnp.zeros((rows, K + 2), jnp.int32)
    draft = drafter.init(rows, K + 2)
    proposal, _ = jax.jit(ask, static_argnums=4)(drafter, draft, text, text[:, 0] + 1, 0.9)
    outside = np.setdiff1d(np.arange(31), VARIANTS["all"]["target_ids"])
    assert proposal.q is not None and (proposal.q[..., outside] == 0).all()
    np.testing.assert_allclose(proposal.q.sum(-1), 1.0, atol=1e-5)
    assert not np.isin(proposal.tokens, outside).any()
    # All rows are alike: the first guesses are a sample of their law.
    got = np.bincount(proposal.tokens[:, 0], minlength=31) / rows
    assert np.abs(got - proposal.q[0, 0]).max() < 4 * 0.5 / rows**0.5


def test_the_loss_is_the_sum_it_says_it_is() -> None:
    """Against plain loops over steps and positions, and whatever the size of the chunks."""
    target, width = tiny.model(), 9
    spec = spec_of("all")
    ids = np.asarray(spec.target_ids)
    objective, params = objective_of(spec, chunk=4)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 31, (2, width)), jnp.int32)
    supervised = jnp.asarray(rng.random((2, width)) < 0.8)
    batch = Batch(tokens, supervised, jnp.asarray([width, width - 2]))

    @jax.jit
    def run(params: Any) -> Any:
        parts = objective(params, batch, target.net, jax.random.key(0))
        net = objective.skeleton.module(params)
        final, fused = objective._features(net, batch, target.net)
        states = objective.unroll(net, batch, fused, target.net)
        return parts, net.head(states), target.net.head(final)

    (total, weight, sums), student, teacher = run(params)
    want, count, right = 0.0, 0, 0
    log_softmax = lambda x: x - np.log(np.exp(x).sum())
    for b in range(2):
        for t in range(1, width):
            for j in range(K):
                label = t + 1 + j
                if label >= batch.length[b] or not supervised[b, label]:
                    continue
                p = np.asarray(teacher[b, t + j], np.float64)
                if p.argmax() not in ids:
                    continue
                log_p = log_softmax(p[ids])
                log_q = log_softmax(np.asarray(student[j, b, t], np.float64))
                want += 0.8**j * (np.exp(log_p) * (log_p - log_q)).sum()
                count += j == 0
                right += j == 0 and ids[log_q.argmax()] == p.argmax()
    assert float(total) == pytest.approx(want, rel=1e-5)
    assert float(weight) == count > 0 and float(sums["accuracy"]) == right


BAD = {
    "num_draft": (dict(num_draft=0), {}, "at least 1"),
    "kind": (dict(kind="dice"), {}, "kind='dice'"),
    "reduced": (dict(target_ids=None), {}, "which they are"),
    "ids": (dict(target_ids=np.arange(16) + 20), {}, "different ids from 0 to 30"),
    "number of ids": (dict(target_ids=np.arange(5)), {}, "16 draft tokens"),
    "tap": ({}, dict(taps=(1, 2, 3)), r"hidden_states\[3\].* 2 layers"),
    "width": ({}, dict(target_hidden_size=64), "width 64"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(case: str) -> None:
    fields, config, message = BAD[case]
    spec = spec_of("all")
    net = dataclasses.replace(spec.net, config=dataclasses.replace(spec.net.config, **config))
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(spec, net=net, **fields).bind(tiny.model(), "sampled")


def test_default_taps() -> None:
    assert default_taps(32) == (2, 16, 29) and default_taps(8) == (2, 4, 5)
    for layers in range(1, 40):
        taps = default_taps(layers)
        assert sorted(taps) == list(taps) and taps[0] >= 1 and taps[-1] <= max(layers - 1, 1)
