"""The DFlash family: masks by brute force, training graph against inference graph, parity."""

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

import specjax
from specjax import session
from specjax.core.types import Kept
from specjax.drafters import base
from specjax.drafters.dflash import DFlash, DFlash2, default_taps, embed, fresh_config, fresh_net
from specjax.drafters.dflash.net import Blocks
from specjax.drafters.dflash.objective import DFlashObjective, draw_anchors
from specjax.drafters.eagle3 import Eagle3
from specjax.models.config import read_rope
from specjax.models.surgery import ends_dense
from specjax.sampling import Options, make_sampling
from specjax.train.objectives.base import Batch
from specjax.train.state import Skeleton

FAMILY = ["dflash", "dflash2", "dspark"]
VOCAB, SIZE, NUM_DRAFT = 7, 36, 3


def target() -> specjax.Model:
    return tiny.model(vocab=VOCAB, layers=3)


def texts() -> list[list[int]]:
    """Greedy texts of the target, prompts included: what `matches` is defined on."""
    prompts = [[1, 2, 3], [4, 0, 5, 6, 1]]
    out = specjax.generate(target(), None, prompts, max_new_tokens=[SIZE - 3, SIZE - 5])
    return [p + t for p, t in zip(prompts, out.tokens)]


def objective(spec: Any, **kwargs: Any) -> tuple[DFlashObjective, dict[str, jax.Array]]:
    skeleton, params = Skeleton.of(spec.net.module)
    params = {name: p[...] if isinstance(p, nnx.Param) else p for name, p in params.items()}
    made = DFlashObjective(skeleton, spec.net.config, jnp.float32, spec.target_ids, **kwargs)
    return made, params


def batch() -> Batch:
    tokens = jnp.asarray(texts(), jnp.int32)
    return Batch(tokens, jnp.ones_like(tokens, jnp.bool_), jnp.full((2,), SIZE, jnp.int32))


def at_prefix(spec: Any, text: list[int]) -> tuple[Any, Any, base.Context]:
    """The drafter, its state and what it looks at with the last token of ``text`` pending."""
    s = session.Session(target(), spec, [session.Row(text, Options(), 0, 8, ())])
    context = base.Context(
        s.state.tokens, s.state.length, s.request.keys, s.request.sampling, s.state.counts
    )
    return s.drafter, s.state.draft, context


@pytest.mark.parametrize("window,from_anchor", [(None, False), (4, False), (4, True)])
@pytest.mark.parametrize("causal", [True, False])
def test_masks_are_the_predicate(window: int | None, from_anchor: bool, causal: bool) -> None:
    """Slot by slot, as SpecForge and z-lab write it (and speculators, from the anchor)."""
    anchors, slots, context = np.array([[2, 7, 9], [0, 5, 11]]), 3, 12
    config = dataclasses.replace(
        fresh_config(target().config, 2), window_from_anchor=from_anchor, block_size=slots
    )
    view = Blocks.at(jnp.asarray(anchors), slots)
    seen = view.seen(config, window, causal)
    begin, end, inside = np.asarray(seen.begin), np.asarray(seen.end), np.asarray(seen.within)
    for b in range(2):
        for q in range(9):
            anchor, offset = anchors[b, q // slots], q % slots
            assert int(view.positions[b, q]) == anchor + offset
            for r in range(context):
                want = r < anchor
                if window is not None:
                    want = want and (
                        anchor - r <= window if from_anchor else anchor + offset - r < window
                    )
                assert (begin[b, q] <= r < end[b, q]) == want
            for r in range(slots):
                assert inside[offset, r] == (not causal or r <= offset)


@pytest.mark.parametrize("name", FAMILY)
def test_the_training_graph_is_the_inference_graph(name: str) -> None:
    """The same states for a block at every position, and the cycles of a real run by replay."""
    spec = tiny.fresh(name, NUM_DRAFT, target())
    made, params = objective(spec, chunk=5)
    data = batch()

    def states(params: Any, anchors: jax.Array) -> jax.Array:
        context, _ = made._context(params, data, target().net)
        net = made.skeleton.module(params)
        return made._states(net, target().net.vocabulary, data, context, anchors)

    anchors = np.array([[2, 9, 20], [4, 5, 33]])
    ours = np.asarray(jax.jit(states)(params, jnp.asarray(anchors)))
    inferred = jax.jit(lambda drafter, *rest: drafter.states(*rest))
    for b in range(2):
        for i, anchor in enumerate(anchors[b]):
            drafter, state, context = at_prefix(spec, texts()[b][: anchor + 1])
            cache = getattr(state, "cache", state)
            theirs = np.asarray(inferred(drafter, cache, context))[0]
            np.testing.assert_allclose(ours[b, i], theirs, atol=1e-5)

    same = np.asarray(jax.jit(made.matches)(params, data, target().net))
    out = specjax.generate(
        target(),
        spec,
        [t[:n] for t, n in zip(texts(), (3, 5))],
        max_new_tokens=[SIZE - 3, SIZE - 5],
    )
    for b, pending in enumerate((2, 4)):
        cycles = []
        while pending < SIZE - 1:
            cycles.append(min(int(np.cumprod(same[b, pending]).sum()) + 1, SIZE - 1 - pending))
            pending += cycles[-1]
        assert cycles == [c.committed for c in out.trace.rows[b]]
    assert same.any() and not same.all()


def test_chunks_and_remat_change_nothing() -> None:
    """The loss and its gradient do not depend on how many blocks are run at once."""
    spec, data = tiny.fresh("dspark", NUM_DRAFT, target()), batch()
    results = []
    for chunk, remat in ((2, "blocks"), (100, "none"), (0, "auto")):
        settings = {"anchors": 7, "ce": 0.1, "l1": 0.9, "divergence": 0.3}
        made, params = objective(spec, chunk=chunk, remat=remat, **settings)
        loss = lambda p, made=made: made(p, data, target().net, jax.random.key(1))
        (total, weight, sums), grads = jax.jit(
            lambda p, loss=loss: (loss(p), jax.grad(lambda p: loss(p)[0])(p))
        )(params)
        results.append((total, weight, sums["accuracy"], grads))
    assert float(results[0][1]) > 0
    for other in results[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), other, results[0]
        )
    assert all(float(jnp.abs(g).max()) > 0 for g in results[0][3].values())


def test_anchors_are_followed_by_labels() -> None:
    supervised = jnp.zeros((2, 12), jnp.bool_).at[0, 5:9].set(True).at[1, 3].set(True)
    data = Batch(jnp.zeros((2, 12), jnp.int32), supervised, jnp.array([8, 12]))
    anchors, keep = draw_anchors(data, 6, jax.random.key(0))
    assert [sorted(np.asarray(a)[np.asarray(k)].tolist()) for a, k in zip(anchors, keep)] == [
        [4, 5, 6],  # 7 is followed by padding
        [2],
    ]


def test_context_grows_as_it_would_at_once() -> None:
    """Random numbers of accepted tokens, committed cycle by cycle, against one prefill."""
    drafter = tiny.fresh("dflash", 4, target()).bind(target(), "one_hot")
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(3, 40, len(drafter.taps) * 32)), jnp.float32)
    state, length = drafter.init(3, 40), np.zeros(3, int)
    update = jax.jit(drafter.update)
    for _ in range(6):
        count = rng.integers(0, 6, size=3)
        rows = np.minimum(length[:, None] + np.arange(5), 39)
        block = jnp.take_along_axis(features, jnp.asarray(rows)[..., None], axis=1)
        kept = Kept(jnp.zeros((3, 5), jnp.int32), jnp.asarray(count), block)
        state = update(state, kept)
        length += count
    whole = drafter.prefill(drafter.init(3, 40), None, jnp.asarray(length), features)
    assert (np.asarray(state.length) == length).all() and length.max() > 8
    for a, b in zip(jax.tree.leaves(state.layers), jax.tree.leaves(whole.layers), strict=True):
        for row in range(3):
            np.testing.assert_allclose(
                a[row, :, : length[row]], b[row, :, : length[row]], atol=1e-5
            )


def test_a_shorter_block_than_trained() -> None:
    """K below the trained block is a block of K + 1 slots, not the first K guesses of a longer."""
    whole = tiny.fresh("dflash", 5, target())
    text = texts()[0][:12]
    guesses = {}
    for k in (2, 5):
        drafter, state, context = at_prefix(dataclasses.replace(whole, num_draft=k), text)
        guesses[k] = jax.eval_shape(drafter.states, state, context).shape[1]
    assert guesses == {2: 2, 5: 5}
    with pytest.raises(ValueError, match="at most 5"):
        specjax.generate(target(), dataclasses.replace(whole, num_draft=6), [text])


def test_taps_follow_the_published_lists() -> None:
    for layers, num, want in [
        (36, 5, [1, 9, 17, 25, 33]),
        (32, 8, [1, 5, 9, 13, 17, 21, 25, 29]),
        (64, 5, [1, 16, 31, 46, 61]),
        (61, 6, [1, 12, 24, 35, 47, 58]),
    ]:
        assert default_taps(layers, num) == tuple(i + 1 for i in want)
    assert default_taps(4, 3) == (1, 2, 3)


def test_a_drafter_of_another_target_is_refused() -> None:
    spec = tiny.fresh("dflash", 3, target())
    for other, message in [
        (tiny.model(vocab=9, layers=3), "vocabulary of 7"),
        (tiny.model(vocab=VOCAB, layers=1), "taps hidden_states"),
    ]:
        with pytest.raises(ValueError, match=message):
            specjax.generate(other, spec, [[1, 2]])
    config = dataclasses.replace(spec.net.config, mask_token_id=VOCAB)
    with pytest.raises(ValueError, match="mask_token_id=7 lies outside"):
        specjax.generate(target(), DFlash(fresh_net(config, target(), 0, False)), [[1, 2]])


def test_yarn_against_its_definition() -> None:
    """Frequencies of gpt-oss drafters, dimension by dimension; the amplitude of the paper."""
    raw = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
    rope = read_rope({"rope_theta": 150000.0, "rope_scaling": {**raw, "truncate": False}})
    assert rope.amplitude == pytest.approx(0.1 * np.log(32) + 1)
    base_freqs = 150000.0 ** (-np.arange(32) / 32)
    low = 64 * np.log(4096 / (32 * 2 * np.pi)) / (2 * np.log(150000))
    high = 64 * np.log(4096 / (1 * 2 * np.pi)) / (2 * np.log(150000))
    for i, got in enumerate(rope.frequencies(64)):
        kept = 1 - min(max((i - low) / (high - low), 0), 1)
        assert got == pytest.approx(base_freqs[i] * (kept + (1 - kept) / 32))
    with pytest.raises(ValueError, match="has no beta=3"):
        read_rope({"rope_scaling": {**raw, "beta": 3}})


def test_parity_of_the_sampled_walk_candidates(shared: Path) -> None:
    """The selector's candidates and choices are those of the reference."""
    folder = shared / "parity" / "dflash2-qwen3"
    goal = specjax.load(shared / "parity" / "qwen3", dtype="float32")
    spec = specjax.load_drafter(folder, goal)
    golden = np.load(folder / "golden.npz")
    drafter = spec.bind(goal, "sampled")
    assert json.loads((folder / "config.json").read_text())["dflash_config"]["selector_top_k"] == 8
    net = drafter.net.module
    context = net.context(jnp.asarray(golden["context"])[None], jnp.arange(24)[None])
    cache = drafter.init(1, 24).commit(context, jnp.array([24]))
    tokens = jnp.pad(jnp.asarray(golden["input_ids"])[None], ((0, 0), (0, 1)))
    tokens = tokens.at[0, 24].set(int(golden["anchor"][0]))
    s = session.Session(goal, spec, [session.Row([1], Options(temperature=1.0), 0, 2, ())])
    one = base.Context(tokens, jnp.array([25]), s.request.keys, s.request.sampling, None)
    propose = jax.jit(lambda drafter, *rest: drafter.propose(*rest)[0])
    proposal = propose(drafter, cache, one)
    support = [np.flatnonzero(row) for row in np.asarray(proposal.q)[0]]
    assert [set(x.tolist()) for x in support] == [set(x.tolist()) for x in golden["candidate_ids"]]
    np.testing.assert_allclose(np.asarray(proposal.q).sum(-1), 1.0, atol=1e-5)
    greedy = dataclasses.replace(spec, kind="one_hot").bind(goal, "one_hot")
    assert propose(greedy, cache, one).tokens[0].tolist() == golden["selected"].tolist()


@pytest.mark.parametrize("name", ["dflash2", "eagle3"])
def test_a_bias_against_all_that_a_draft_can_say(name: str) -> None:
    """The law of the guesses stays one: it sums to 1, and the text obeys the bias."""
    if name == "dflash2":
        spec = DFlash2.fresh(target(), num_draft=2, selector_top_k=2)
    else:
        spec = Eagle3.fresh(target(), num_draft=2, target_ids=[1, 4])
    bias = {token: -np.inf for token in range(VOCAB) if token != 3}
    out = specjax.generate(
        target(), spec, [[1, 2]], max_new_tokens=9, temperature=1.0, logit_bias=bias, rule="token"
    )
    assert out.tokens[0] == [3] * 9


@pytest.mark.parametrize("from_anchor", [False, True])
def test_a_window_allocates_the_window(from_anchor: bool) -> None:
    """Memory does not follow the text, and the states are those of a pass over all of it."""
    sizes = {"layers": 2, "window": 6, "window_from_anchor": from_anchor}
    spec = DFlash.fresh(target(), num_draft=4, seed=1, **sizes)
    drafter, width = spec.bind(target(), "one_hot"), 30
    config, c = spec.net.config, spec.net.config.backbone
    slots = 6 if from_anchor else 5
    heads = 2 * c.num_layers * c.num_kv_heads * c.head_dim
    assert {drafter.init(2, n).num_bytes for n in (64, 4096)} == {2 * 4 * slots * heads}

    rng = np.random.default_rng(2)
    text = jnp.asarray(rng.integers(0, 31, (1, width)), jnp.int32)
    features = jax.jit(lambda net: net(text, taps=config.taps).features)(target().net)
    anchors = jnp.arange(1, width)[None]
    blocks, net = Blocks.at(anchors, config.block_size), spec.net.module
    context = net.context(features, jnp.arange(width)[None])
    tokens = jnp.full((width - 1, config.block_size), config.mask_token_id, jnp.int32)
    tokens = tokens.at[:, 0].set(text[0, 1:])
    x = embed(net, config, drafter.vocabulary, tokens.reshape(1, -1))
    look = blocks.looking_at(context, config)
    want = jax.jit(lambda x: net.block(x, blocks.positions, blocks.offsets, look))(x)
    want = want.reshape(width - 1, config.block_size, -1)[:, 1:]

    rows, length = width - 1, np.zeros(width - 1, int)  # one row an anchor
    prefill = jax.jit(drafter.prefill)
    state, features = (
        drafter.init(rows, 64),
        jnp.broadcast_to(features, (rows, *features.shape[1:])),
    )
    while (length < np.arange(1, width)).any():  # in chunks wider than the window, and narrower
        count = np.minimum(rng.integers(0, 12, rows), np.arange(1, width) - length)
        place = np.minimum(length[:, None] + np.arange(12), width - 1)
        block = jnp.take_along_axis(features, jnp.asarray(place)[..., None], axis=1)
        state = prefill(state, None, jnp.asarray(count, jnp.int32), block)
        length += count
    lengths = jnp.asarray(length + 1, jnp.int32)
    keys, sampling = (
        jax.random.split(jax.random.key(0), rows),
        make_sampling([Options()] * rows, 31),
    )
    one = base.Context(jnp.broadcast_to(text, (rows, width)), lengths, keys, sampling, None)
    np.testing.assert_allclose(jax.jit(drafter.states)(state, one), want, atol=2e-5)


def test_layers_that_cannot_be_taken_from_a_target_say_so() -> None:
    with pytest.raises(ValueError, match=r"only where those are dense .*sizes\.from_target=False"):
        DFlash.fresh(tiny.model("qwen3_moe"), num_draft=2, layers=1, num_taps=1, from_target=True)
    sizes: dict[str, Any] = {"num_draft": 2, "layers": 1, "num_taps": 1, "from_target": None}
    DFlash.fresh(tiny.model("qwen3_moe"), **sizes)  # which only begins otherwise
    for name in ("gemma3_text", "qwen3_5_text"):  # gains 1 + w, gates among the queries
        assert not ends_dense(tiny.model(name), 1)
    dense = tiny.model("qwen3")
    begun = DFlash.fresh(dense, **sizes).net.module.layers[0].mlp.up_proj.weight
    assert (begun[...] == dense.net.module.layers[-1].mlp.up_proj.weight[...]).all()
