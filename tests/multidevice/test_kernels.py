"""Kernels of our own, interpreted, on a mesh: each device does its part, nothing is exchanged."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import state_cases

from specjax.core.ops.heads import HeadsAtOnce
from specjax.core.ops.heads import reference as cut_apart
from specjax.core.ops.norm import NormAtOnce
from specjax.core.ops.norm import reference as added_and_normed
from specjax.core.sharding import make_mesh, use_mesh
from specjax.models.joint import Joint

_EXCHANGES = re.compile(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter")


@pytest.mark.parametrize("joined", [True, False])
def test_heads_of_a_mesh(joined: bool) -> None:
    """Of a product that was joined for its devices, and of three."""
    case = state_cases.Case("", gated=True, kind="from one", rotated=16, joined=False)
    products, rotation, weights, form = state_cases.arguments(case, jnp.float32)
    form = dataclasses.replace(form, axes=("heads", "kv_heads"))
    want = cut_apart(products, rotation, weights, form)
    if joined:
        parts = products[:3]
        joint = Joint(("q", "k", "v"), tuple(x.shape[-1] for x in parts), blocks=2)
        whole = jnp.moveaxis(joint.join([jnp.moveaxis(x, -1, 0) for x in parts]), 0, -1)
        empty = (jnp.full_like(x, jnp.nan) for x in parts)
        products = products._replace(**dict(zip("qkv", empty)), whole=whole, blocks=2)
    with use_mesh(make_mesh(2, 2)):
        run = jax.jit(lambda: HeadsAtOnce(interpret=True)(products, rotation, weights, form))
        text, got = run.lower().compile().as_text(), run()
    state_cases.same(got, want, jnp.float32, str(joined))
    assert got[0].sharding.spec == jax.P("data", "model")
    assert not _EXCHANGES.search(text)


def test_norms_of_a_mesh() -> None:
    rng = np.random.default_rng(0)
    x, more = (jnp.asarray(rng.normal(size=(4, 3, 16)), jnp.float32) for _ in range(2))
    given = (x, more, jnp.ones(16), state_cases.KINDS["late gain"])
    with use_mesh(make_mesh(2, 4)):
        run = jax.jit(lambda: NormAtOnce(interpret=True)(*given))
        text, got = run.lower().compile().as_text(), run()
    state_cases.same(got, added_and_normed(*given), jnp.float32, "")
    assert got[0].sharding.spec == jax.P("data")
    assert not _EXCHANGES.search(text)
