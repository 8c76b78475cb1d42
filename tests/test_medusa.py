"""Medusa: its heads against reference outputs, its alignment, and training against speculation."""

from __future__ import annotations

import dataclasses
import functools
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
from specjax.checkpoint.drafters import named
from specjax.core import trees
from specjax.drafters import DRAFTERS, MedusaTree
from specjax.drafters.medusa import Medusa
from specjax.drafters.medusa.choices import TREES, check_choices, parents_of
from specjax.drafters.medusa.net import MedusaConfig, MedusaNet
from specjax.drafters.medusa.objective import MedusaObjective
from specjax.models import Frozen
from specjax.train.objectives.base import Batch
from specjax.train.state import Skeleton

K = 3


def test_the_authors_heads(shared: Path) -> None:
    folder = shared / "parity" / "medusa-llama3"
    tensors, want = load_file(folder / "medusa_lm_head.safetensors"), np.load(folder / "golden.npz")
    net = MedusaNet(MedusaConfig(64, 384, 4), dtype=jnp.float32, rngs=nnx.Rngs(0))
    for path, param in nnx.to_flat_state(nnx.state(net)):
        # heads.i.blocks.j.X is i.j.X there, and heads.i.output.weight is behind the blocks.
        name = ".".join(map(str, path)).removeprefix("heads.")
        name = name.replace("blocks.", "").replace("output", "1")
        param[...] = tensors.pop(name).astype(jnp.float32)
    assert not tensors
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(lambda net, h: net.module(h, 4))(
            Frozen.of(net), jnp.asarray(want["features"])[None]
        )
    np.testing.assert_allclose(logits[0].swapaxes(0, 1), want["medusa_logits"], atol=2e-4)


@functools.cache
def spec_of() -> Medusa:
    """Heads of two blocks that have left zero, of a target whose head they began with."""
    spec = Medusa.fresh(tiny.model(), num_draft=K, seed=1, layers=2)
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), spec.net.params
    )
    return dataclasses.replace(spec, net=dataclasses.replace(spec.net, params=params))


def objective_of(spec: Medusa) -> tuple[MedusaObjective, dict[str, Any]]:
    skeleton, params = Skeleton.of(spec.net.module)
    return MedusaObjective(skeleton, spec.net.config, jnp.float32, chunk=7), params


def test_the_loss_is_the_sum_it_says_it_is() -> None:
    """Against plain loops: head i of the state before token t is charged with token t + 1 + i."""
    target, width = tiny.model(), 12
    spec = spec_of()
    objective, params = objective_of(spec)
    rng = np.random.default_rng(5)
    tokens, lengths = rng.integers(0, 31, (2, width)).astype(np.int32), (width, width - 3)
    supervised = rng.random((2, width)) < 0.7
    batch = Batch(jnp.asarray(tokens), jnp.asarray(supervised), jnp.asarray(lengths))
    taps = spec.bind(target, "one_hot").taps

    @jax.jit
    def run(params: Any) -> Any:
        parts = objective(params, batch, target.net, jax.random.key(0))
        features = target.net(batch.tokens, taps=taps).features
        return parts, objective.skeleton.module(params)(features, K)

    (total, weight, sums), logits = run(params)
    logits = np.asarray(logits, np.float64)
    want, labels, right = 0.0, 0, 0
    for b in range(2):
        for t in range(1, width):
            for i in range(K):
                label = t + 1 + i
                if label >= lengths[b] or not supervised[b, label]:
                    continue
                x, said = logits[b, t - 1, i], tokens[b, label]
                want -= 0.8**i * (x[said] - np.log(np.exp(x).sum()))
                labels += int(i == 0)
                right += int(i == 0 and x.argmax() == said)
    assert float(total) == pytest.approx(want, rel=1e-5)
    assert float(weight) == labels > 0 and float(sums["accuracy"]) == right


def test_predicted_cycles_are_the_real_ones() -> None:
    """`matches` over the target's greedy texts gives every cycle of real speculation."""
    spec = spec_of()
    assert checks.predicted_cycles(tiny.model(), spec, *objective_of(spec))[1].tau > 1.0


def test_what_does_not_fit_is_refused() -> None:
    spec, target = spec_of(), tiny.model()
    assert spec.bind(target, "sampled").num_draft == K
    with pytest.raises(ValueError, match="has 3 heads"):
        dataclasses.replace(spec, num_draft=4).bind(target, "sampled")
    with pytest.raises(ValueError, match="vocabulary of 31 tokens"):
        spec.bind(tiny.model(vocab=32), "sampled")
    with pytest.raises(ValueError, match="kind='dice'"):
        dataclasses.replace(spec, kind="dice").bind(target, "sampled")


# --- the published tree ---------------------------------------------------------------------------


def test_the_authors_tree(shared: Path) -> None:
    """Its buffers and candidates, and every cycle of a text."""
    folder, llama = shared / "parity" / "medusa-llama3", shared / "parity" / "llama3"
    want, golden = dict(np.load(folder / "golden.npz")), np.load(llama / "golden.npz")
    target = specjax.load(llama, dtype="float32")
    heads = specjax.load_drafter(folder, target)
    assert heads.num_draft is None and len(heads.choices) == 10  # a chain, with its tree beside it
    spec = DRAFTERS["medusa_tree"].make(heads, None)
    order = lambda nodes: tuple(sorted(nodes, key=lambda node: (len(node), node)))  # the authors'
    for name, choices in (("tree", spec.nodes), ("mc63", TREES["mc_sim_7b_63"])):
        nodes = order(choices)
        parents = parents_of(nodes)
        depth, routes = trees.depths(parents), trees.routes(parents)
        assert (trees.ancestors(parents) == want[f"{name}_medusa_attn_mask"]).all()
        assert (depth == want[f"{name}_medusa_position_ids"]).all()
        indices = [0, *(10 * (len(node) - 1) + node[-1] + 1 for node in nodes)]
        assert indices == want[f"{name}_tree_indices"].tolist()
        leaves = set(range(len(nodes) + 1)) - set(parents)
        ours = {tuple(routes[leaf, : depth[leaf] + 1].tolist()) for leaf in leaves}
        rows = want[f"{name}_retrieve_indices"].tolist()
        assert ours == {tuple(place for place in row if place >= 0) for row in rows}
    prompt = golden["input_ids"][: len(want["features"])].tolist()
    first, *rest = want["e2e_tokens"].tolist()  # theirs comes of the prefill
    with jax.default_matmul_precision("highest"):
        out = specjax.generate(
            target, spec, [*prompt, first], max_new_tokens=len(rest), stop_token_ids=[]
        )
    assert out.tokens[0] == rest
    cycles = out.trace.rows[0]
    guessed = dict(zip(spec.nodes, cycles[0].proposed, strict=True))
    assert [guessed[n] for n in order(guessed)] == want["tree_candidates"][0, 1:].tolist()
    # Theirs goes on for a cycle behind the text.
    assert [c.accepted for c in cycles] == want["e2e_accept"].tolist()[:-1]


def test_what_is_no_tree_is_refused() -> None:
    wrong = {
        "no path of ranks": [[0], [0, -1]],
        "there twice": [[0], [0]],
        "has no parent": [[0], [1, 0]],
        "is a list of paths": {},
        "no tree 'oak'": "oak",
    }
    for message, choices in wrong.items():
        with pytest.raises(ValueError, match=message) as error:
            check_choices(choices, "medusa_choices.json")
        assert "\n" not in str(error.value)
    assert check_choices([[0, 1], [0], [0, 0]], "") == ((0,), (0, 1), (0, 0))  # parents first
    target, spec = tiny.model(), MedusaTree(spec_of().net)
    assert spec.bind(target, "sampled").kind == "coupled"
    assert spec.bind(target, "one_hot").num_draft == len(spec.nodes) == 61  # for three heads
    with pytest.raises(ValueError, match="has 61 nodes for its 3 heads"):
        dataclasses.replace(spec, num_draft=62).bind(target, "sampled")
    with pytest.raises(ValueError, match="drawn 'one_hot' or 'coupled'"):
        dataclasses.replace(spec, kind="sampled").bind(target, "one_hot")
    with pytest.raises(ValueError, match="a tree of 61: use rule 'coupled'"):
        specjax.generate(target, spec, [[1, 2]], temperature=1.0, rule="block")


def test_its_name_counts_nodes() -> None:
    target = specjax.load("demo:target")
    spec = named.parse("medusa_tree:4").load(target)
    assert isinstance(spec, MedusaTree) and spec.nodes == ((0,), (0, 0), (1,), (0, 1))
    assert len(named.parse("medusa_tree").load(target).nodes) == 38  # for its two heads


def test_a_row_at_temperature_0_has_siblings_in_any_batch() -> None:
    """Drawn with noise its likeliest token would be the only one."""
    target, spec = tiny.model(), MedusaTree(spec_of().net, 5)
    prompts = tiny.prompts(2)
    alone = specjax.generate(target, spec, prompts[:1], max_new_tokens=12)
    mixed = specjax.generate(
        target, spec, prompts, max_new_tokens=12, temperature=[0.0, 1.0], seed=[0, 1]
    )
    assert mixed.trace.rows[0] == alone.trace.rows[0]
    assert all(len(c.proposed) == 5 for c in mixed.trace)
