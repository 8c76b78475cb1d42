"""Drafters that draft with the target itself: lossless, and nothing of it is there twice."""

from __future__ import annotations

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_families
from checks import STEPS
from conftest import AS_USERS_DO
from flax import nnx
from self_draft import SelfDraft

import specjax
from specjax import decode
from specjax.core.ops import linear
from specjax.core.types import Array
from specjax.drafters import EarlyExit, Spec
from specjax.lab.compiler.hlo import count_copies
from specjax.lab.costs.programs import Silent, one_token_session
from specjax.models.layers import linear as products

K = 3


def lowered(net: specjax.models.Frozen) -> str:
    tokens = jnp.zeros((2, 4), jnp.int32)
    return jax.jit(lambda net: net(tokens).hidden).lower(net).as_text()


def test_a_side_path_costs_nothing_where_there_is_none() -> None:
    """The program of a plain target is that of a product written without any side path."""

    def plain(self: products.Linear, x: Array) -> Array:
        return linear(x, self.weight[...], platform=self.platform)

    net = tiny.model().net
    ours = lowered(net)
    with mock.patch.object(products.Linear, "__call__", plain):
        assert lowered(net) == ours
    down, up = jnp.ones((1, 32)), jnp.ones((48, 1))
    one = net.adapted({"layers.0.mlp.up_proj.weight": (down, up)}, jnp.ones((4,), bool))
    assert lowered(one) != ours


def test_a_side_path_is_for_its_tokens_alone() -> None:
    """Where all take it, it is the weight W + U D; where none does, it is not there."""
    target, tokens = tiny.model(), jnp.asarray([[3, 1, 4, 1], [5, 9, 2, 6]])
    adapters = SelfDraft.of(target, K).adapters
    flat = [(".".join(map(str, p)), p, w) for p, w in nnx.to_flat_state(target.net.params)]
    merged = nnx.from_flat_state(
        (p, w.replace(w[...] + adapters[name][1] @ adapters[name][0]) if name in adapters else w)
        for name, p, w in flat
    )
    final = jax.jit(lambda net, tokens: net(tokens).hidden)
    taken = jnp.asarray([False, False, True, True])
    none, all_, some = (
        final(target.net.adapted(adapters, x), tokens) for x in (taken & False, taken | True, taken)
    )
    plain = final(target.net, tokens)
    np.testing.assert_array_equal(none, plain)
    whole = final(specjax.models.Frozen(merged, target.net.graphdef, target.config), tokens)
    np.testing.assert_allclose(all_, whole, atol=1e-4)
    np.testing.assert_array_equal(some[:, :2], plain[:, :2])
    assert (jnp.abs(some - plain).max(-1)[:, 2:] > 0.1).all()
    for name in ("norm.weight", "layers.7.mlp.up_proj.weight"):
        with pytest.raises(ValueError, match="no layer has a weight"):
            target.net.adapted({name: (jnp.ones((1, 32)), jnp.ones((48, 1)))}, taken)
    latent = tiny_families.model("latent")
    name = "layers.0.mixing.kv_b_proj.weight"
    out, width = latent.net.module.layers[0].mixing.kv_b_proj.weight.shape
    adapted = latent.net.adapted({name: (jnp.ones((1, width)), jnp.ones((out, 1)))}, taken)
    with pytest.raises(ValueError, match="takes no side path"):
        adapted(tokens)


def text_is_the_targets_own(target: specjax.Model, drafter: Spec) -> specjax.Output:
    """Greedy and coupled rows in one batch, against plain decoding and its own seeds."""
    prompts = tiny.prompts(4)
    options = {"temperature": [0.0, 1.0, 0.0, 1.0], "seed": [3, 1, 4, 1], "rule": "coupled"}
    want = specjax.generate(target, None, prompts, max_new_tokens=STEPS, **options).tokens
    assert len({tuple(w) for w in want}) == 4
    out = specjax.generate(target, drafter, prompts, max_new_tokens=STEPS, **options)
    assert out.tokens == want
    return out


def test_layers_of_every_kind() -> None:
    """Recurrent, windowed and latent layers of a target, over its own memory; and all of it."""
    target = tiny_families.model("mixed")
    three = text_is_the_targets_own(target, EarlyExit(3, K))
    assert three.trace.survival()[0] < 1
    assert text_is_the_targets_own(target, EarlyExit(4, K)).tau == K + 1  # it is always right
    text_is_the_targets_own(target, SelfDraft.of(target, K))


@pytest.mark.parametrize("kind", ["one_hot", "sampled", "coupled"])
def test_guesses_of_every_kind(kind: str) -> None:
    """All layers guess as the target does: of sampled guesses none is refused, either."""
    target, heat = tiny.model(), 0.0 if kind == "one_hot" else 0.9
    options = {"max_new_tokens": STEPS, "temperature": heat, "seed": 5}
    out = specjax.generate(target, EarlyExit(2, K, kind), tiny.prompts(3), **options)
    assert out.tau == K + 1


def test_the_whole_target_asked_for_several_tokens() -> None:
    """What the pending token says is plain: the first guess is always right."""
    target = tiny.model()
    out = text_is_the_targets_own(target, SelfDraft.of(target, K))
    survival = out.trace.survival()
    assert survival[0] == 1.0 and survival[1] < 0.5


def compiled(target: specjax.Model, drafter: Spec) -> tuple[str, int, int]:
    """The loop of cycles as users run it, the bytes of its arguments but the drafter's own
    weights, and those of what it makes on the way."""
    s = one_token_session(target, drafter, 1, 512, 0.0, None)
    args = (target.net, s.drafter, s.rule, s.request, s.state, jnp.int32(4))
    program = decode.run_program.lower(*args).compile(compiler_options=AS_USERS_DO)
    own = sum(x.nbytes for x in jax.tree.leaves(s.drafter))
    memory = program.memory_analysis()
    arguments = memory.argument_size_in_bytes - own
    return program.as_text(), arguments, memory.temp_size_in_bytes


def test_nothing_is_there_twice() -> None:
    """No copy of the target's weights or cache, and no more memory than without a drafter."""
    target = tiny.model(vocab=1000)
    cache, weights = target.net.init_cache(1, 512), jax.tree.leaves(target.net.params)
    few = min(cache.num_bytes, sum(x.nbytes for x in weights)) / 20
    _, plain_arguments, plain_temporary = compiled(target, Silent(K))
    for drafter in (SelfDraft.of(target, K), EarlyExit.fresh(target, num_draft=K, rank=8)):
        text, arguments, temporary = compiled(target, drafter)
        for shape in {x.shape for x in (*weights, *jax.tree.leaves(cache.layers))}:
            assert count_copies(text, shape) == (0, 0), shape
        assert abs(arguments - plain_arguments) < 1000
        assert temporary - plain_temporary < few
