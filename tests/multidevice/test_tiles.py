"""On a mesh every device goes over the tiles of the rows and heads that it has."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from specjax.core.ops import Cached
from specjax.core.ops.attend import reference
from specjax.core.ops.tiles import Follow
from specjax.core.sharding import make_mesh, use_mesh

FOLLOW = Follow(reference, tile_bytes=1, sizes=(4, 4), cost=lambda queries: 1.5)
ROWS, SLOTS = 4, 32


def drawn(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    "groups,axes,split",
    [
        (4, ("heads", "kv_heads"), ("model", "model")),
        (1, ("heads", None), ("model", None)),  # as latent entries have it
        (2, (None, None), (None, None)),  # of a drafter that every device has whole
    ],
)
def test_tiles_stay_where_they_are(
    groups: int, axes: tuple[str | None, str | None], split: tuple[str | None, str | None]
) -> None:
    mesh = make_mesh(2, 4)
    lengths = jnp.asarray([1, 30, 9, 0], jnp.int32)
    q, k, v = drawn(0, ROWS, 8, 3, 6), drawn(1, ROWS, groups, 3, 6), drawn(2, ROWS, groups, 3, 5)
    old = drawn(3, ROWS, groups, SLOTS, 6), drawn(4, ROWS, groups, SLOTS, 5)
    visible, sinks = jnp.tril(jnp.ones((1, 3, 3), bool)), drawn(5, 8)

    def run(way, q, k, v, old_k, old_v, sinks, reach):  # type: ignore[no-untyped-def]
        seen = jnp.arange(SLOTS)[None, None] < reach[:, None, None]
        cached = Cached(old_k, old_v, seen, reach, axes)
        return way(q, k, v, visible, cached, None, sinks)

    want = run(reference, q, k, v, *old, sinks, lengths)
    place = lambda x, heads: jax.device_put(
        x, NamedSharding(mesh, PartitionSpec("data", heads, None, None))
    )
    of_q, of_kv = split
    given = (place(q, of_q), *(place(x, of_kv) for x in (k, v, *old)))
    sinks = jax.device_put(sinks, NamedSharding(mesh, PartitionSpec(of_q)))
    reach = jax.device_put(lengths, NamedSharding(mesh, PartitionSpec("data")))
    with use_mesh(mesh):
        compiled = jax.jit(lambda *a: run(FOLLOW, *a)).lower(*given, sinks, reach).compile()
        got = compiled(*given, sinks, reach)
    np.testing.assert_allclose(got, want, atol=2e-6)
    text = compiled.as_text()
    assert " while(" in text and not any(
        name in text for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    )
    assert got.sharding.is_equivalent_to(given[0].sharding, 4)
