"""Losses a chunk at a time: what one expression over all positions gives, and no more memory."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.train import losses
from specjax.train.chunks import cut, over_chunks, positions_at_once, shares
from specjax.train.room import logits_room

ROWS, SIZE, WIDTH, VOCAB = 2, 11, 6, 31


def drawn(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


PARAMS = {"head": drawn(0, VOCAB, WIDTH), "bias": drawn(1, VOCAB), "layer": drawn(2, WIDTH, WIDTH)}
FROZEN, TEACHER, STATES = (
    drawn(3, VOCAB, WIDTH),
    drawn(4, VOCAB, WIDTH),
    drawn(5, ROWS, SIZE, WIDTH),
)
LABELS = jnp.asarray(np.random.default_rng(6).integers(0, VOCAB, (ROWS, SIZE)), jnp.int32)
COUNTED = jnp.asarray(np.random.default_rng(7).random((ROWS, SIZE)) < 0.8)


def loss(params: Any, h: jax.Array, given: Any) -> Any:
    """Cross entropy through a head that is trained and a divergence through one that is not."""
    labels, counted = given
    own = jnp.einsum("bth,vh->btv", h, params["head"]) + params["bias"][None, None]
    lent, wanted = (jnp.einsum("bth,vh->btv", h, w) for w in (FROZEN, TEACHER))
    each = losses.cross_entropy(own, labels) + losses.forward_kl(wanted, lent)
    right = counted & (own.argmax(-1) == labels)
    return jnp.where(counted, each, 0.0).sum(), counted.sum().astype(jnp.float32), right


def through(size: int) -> Any:
    """The loss, its gradients by everything, and what else comes of it, in chunks of ``size``."""

    def total(params: Any, h: jax.Array) -> Any:
        h = jnp.tanh(h @ params["layer"])
        given = (cut(LABELS, size), cut(COUNTED, size))
        found, weight, right = over_chunks(loss, params, cut(h, size), given)
        right = right.swapaxes(0, 1).reshape(ROWS, -1)[:, :SIZE]
        return 3 * found, (weight, right)  # a cotangent that is not one

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


def test_chunks_give_what_all_positions_at_once_do() -> None:
    def whole(params: Any, h: jax.Array) -> Any:
        found = loss(params, jnp.tanh(h @ params["layer"]), (LABELS, COUNTED))
        return 3 * found[0], found[1:]

    want = jax.jit(jax.value_and_grad(whole, argnums=(0, 1), has_aux=True))(PARAMS, STATES)
    for size in (1, 4, SIZE):
        found = through(size)(PARAMS, STATES)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, want
        )


def test_a_head_is_multiplied_with_once_and_never_whole() -> None:
    """Forward and back once a chunk; no weight gradient of a head that is not trained."""
    size = 4
    text = str(jax.make_jaxpr(through(size))(PARAMS, STATES))
    # A chunk: two heads and the teacher's forward, both heads back to the states, one to itself.
    products = [line for line in text.splitlines() if "dot_general" in line and str(VOCAB) in line]
    assert f"[{ROWS},{SIZE},{VOCAB}]" not in text.replace(" ", "")
    assert f"[3,{ROWS},{size},{VOCAB}]" not in text.replace(" ", "")
    by_weights = [line for line in products if f"f32[{VOCAB},{WIDTH}] = " in line]
    assert len(by_weights) <= 1
    lowered = through(size).lower(PARAMS, STATES).as_text()
    assert lowered.count("stablehlo.dot_general") == 3 + 2 + 1 + 3  # and of the layer


def test_sizes_of_chunks() -> None:
    assert [shares(256, n) for n in (117, 256, 300, 1, 0)] == [86, 256, 256, 1, 1]
    assert positions_at_once(1, 151_936) == logits_room() // (4 * 151_936) > 0
    assert positions_at_once(4, 1 << 30) == 1
