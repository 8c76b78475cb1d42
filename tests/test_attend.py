"""Attention as it is written for a GPU: the same, in other products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from specjax.core.attend import attend
from specjax.core.platform import trace_for

ROWS, HEADS, GROUPS, TOKENS, SLOTS, WIDTH = 2, 4, 2, 3, 16, 8


@pytest.mark.parametrize("cached", [True, False])
def test_a_gpu_attends_to_the_same(cached: bool) -> None:
    """Values and gradients; with a cache its queries stand behind a barrier."""
    keys = iter(jax.random.split(jax.random.key(0), 5))
    drawn = lambda *shape: jax.random.normal(next(keys), (ROWS, *shape, WIDTH))
    q, k, v = drawn(HEADS, TOKENS), drawn(GROUPS, TOKENS), drawn(GROUPS, TOKENS)
    before = drawn(GROUPS, SLOTS), drawn(GROUPS, SLOTS)
    seen = jnp.arange(SLOTS)[None, None] < jnp.asarray([5, 9])[:, None, None]
    visible = jnp.tril(jnp.ones((1, TOKENS, TOKENS), bool))

    def total(q: jax.Array) -> jax.Array:
        return (attend(q, k, v, visible, (*before, seen) if cached else None) ** 2).sum()

    def traced(name: str) -> str:
        with trace_for(name):
            return str(jax.make_jaxpr(lambda q: total(q))(q))

    assert ("optimization_barrier" in traced("gpu")) == cached
    assert "optimization_barrier" not in traced("cpu")
    ours, gradient = jax.value_and_grad(total)(q)
    with trace_for("gpu"):
        theirs, other = jax.value_and_grad(total)(q)
    assert jnp.allclose(ours, theirs, rtol=1e-6) and jnp.allclose(gradient, other, atol=1e-5)
