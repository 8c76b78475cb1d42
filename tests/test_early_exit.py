"""Early exit: its adapter, its training against speculation, its name, its file, its bytes."""

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
from test_compile import SETUP

import specjax
from specjax.checkpoint.drafters.export import save_drafter
from specjax.checkpoint.drafters.named import parse
from specjax.core.platform import Platform
from specjax.drafters import EarlyExit
from specjax.drafters.early_exit.objective import EarlyExitObjective
from specjax.lab.bench.plan import label_of
from specjax.lab.compiler.abstract import abstract
from specjax.train.objectives.base import Batch
from specjax.train.state import Skeleton

K = 3


@functools.cache
def spec_of() -> EarlyExit:
    """With an adapter that has left zero."""
    spec = EarlyExit.fresh(tiny.model(), num_draft=K, seed=1, rank=8)
    rng = np.random.default_rng(2)
    shaken = lambda x: x + jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype)
    assert spec.net is not None
    return spec.with_net(
        dataclasses.replace(spec.net, params=jax.tree.map(shaken, spec.net.params))
    )


def objective_of(spec: EarlyExit, **settings: Any) -> tuple[EarlyExitObjective, dict[str, Any]]:
    assert spec.net is not None
    skeleton, params = Skeleton.of(spec.net.module)
    config = spec.net.config
    return EarlyExitObjective(skeleton, config, jnp.float32, K, chunk=7, **settings), params


def test_an_adapter_begins_as_none() -> None:
    target, prompts = tiny.model(), tiny.prompts(3)
    fresh = EarlyExit.fresh(target, num_draft=K, rank=8)
    traces = [
        specjax.generate(target, spec, prompts, max_new_tokens=24).trace.rows
        for spec in (EarlyExit(1, K), fresh, spec_of())
    ]
    assert traces[0] == traces[1] != traces[2]


def test_the_loss_is_the_sum_it_says_it_is() -> None:
    """Against plain loops: the exit's law at token t against the target's, both of token t + 1."""
    target, spec, width = tiny.model(), spec_of(), 12
    rng = np.random.default_rng(5)
    tokens, lengths = rng.integers(0, 31, (2, width)).astype(np.int32), (width, width - 3)
    supervised = rng.random((2, width)) < 0.7
    batch = Batch(jnp.asarray(tokens), jnp.asarray(supervised), jnp.asarray(lengths))
    objective, params = objective_of(spec, cross_entropy=0.3, temperature=1.5)

    @jax.jit
    def run(params: Any) -> Any:
        parts = objective(params, batch, target.net, jax.random.key(0))
        h = target.net.first(1)(batch.tokens).hidden
        exit_logits = target.net.head(objective.skeleton.module(params)(h))
        return parts, exit_logits, target.net.head(target.net(batch.tokens).hidden)

    (total, weight, sums), *both = run(params)
    ours, theirs = (np.asarray(x, np.float64) for x in both)
    log_law = lambda x: x - np.log(np.exp(x).sum())
    want, agree, labels = 0.0, 0, 0
    for b in range(2):
        for t in range(lengths[b] - 1):
            if supervised[b, t + 1]:
                q, p = log_law(ours[b, t] / 1.5), log_law(theirs[b, t] / 1.5)
                want += (
                    0.7 * (np.exp(p) * (p - q)).sum() - 0.3 * log_law(ours[b, t])[tokens[b, t + 1]]
                )
                agree += int(ours[b, t].argmax() == theirs[b, t].argmax())
                labels += 1
    assert float(total) == pytest.approx(want, rel=1e-4)
    assert float(weight) == labels > 0 and float(sums["agreement"]) == agree > 0


def test_predicted_cycles_are_the_real_ones() -> None:
    """`matches` over the target's greedy texts gives every cycle of real speculation."""
    spec = spec_of()
    assert checks.predicted_cycles(tiny.model(), spec, *objective_of(spec))[1].tau > 1.0


def test_a_saved_adapter_is_the_same_drafter(tmp_path: Path) -> None:
    target, spec = tiny.model(), spec_of()
    save_drafter(spec, tmp_path / "exit", format="plain", target=target)
    loaded: Any = parse(f"early_exit:{tmp_path / 'exit'}:2").load(target)
    assert loaded.num_draft == 2 and loaded.net.config == spec.net.config  # type: ignore[union-attr]
    jax.tree.map(np.testing.assert_array_equal, loaded.net.params, spec.net.params)  # type: ignore[union-attr]
    other = tiny.model(layers=1, vocab=33)
    with pytest.raises(ValueError, match="31"):
        specjax.load_drafter(tmp_path / "exit", other)


def test_names() -> None:
    target = tiny.model(layers=3)
    made = {
        text: parse(text).load(target).bind(target, "one_hot")
        for text in ("early_exit", "early_exit:4", "early_exit:2:4")
    }
    found = {text: (drafter.depth, drafter.num_draft) for text, drafter in made.items()}
    assert found == {"early_exit": (1, 3), "early_exit:4": (1, 4), "early_exit:2:4": (2, 4)}
    assert [label_of(parse(text)) for text in made] == ["early_exit", "early_exit", "early_exit:2"]


def test_what_does_not_fit_is_refused() -> None:
    target = tiny.model()
    for depth in (0, 3, True):
        with pytest.raises(ValueError, match=f"depth={depth}: early_exit runs at least one layer"):
            EarlyExit(depth, K).bind(target, "sampled")
    with pytest.raises(ValueError, match="num_draft=0"):
        EarlyExit(1, 0).bind(target, "sampled")
    with pytest.raises(ValueError, match="vocabulary of 31 tokens"):
        spec_of().bind(tiny.model(vocab=32), "sampled")
    with pytest.raises(ValueError, match="leave depth out"):
        dataclasses.replace(spec_of(), depth=2).bind(target, "sampled")
    with pytest.raises(ValueError, match="was asked for"):
        specjax.drafters.make("early_exit", model=tiny.make("medusa"))


def test_the_floor_counts_what_is_read_again() -> None:
    """Of two layers: one, the head, the final norm and one layer's cache, in each of K passes."""
    gpu = Platform("gpu")
    plain, ours = (
        abstract(dataclasses.replace(SETUP, drafter=name, num_draft=K), None, gpu).floor(100)
        for name in ("none", "early_exit")
    )
    target = abstract(SETUP, None, gpu).target
    flat = jax.tree_util.tree_leaves_with_path(target.net.params)
    size = {jax.tree_util.keystr(path): x.size * x.dtype.itemsize for path, x in flat}
    layer = sum(x for name, x in size.items() if "['layers'][0]" in name)
    ends = sum(x for name, x in size.items() if "['norm']" in name or "lm_head" in name)
    assert layer > 0 and ends > 0
    assert ours.borrowed_bytes == K * (layer + ends) and plain.borrowed_bytes == 0
    assert ours.weight_bytes == plain.weight_bytes and ours.draft_bytes == 0
    assert ours.cache_bytes == plain.cache_bytes + K * plain.cache_bytes // 2
    assert ours.flops > plain.flops
