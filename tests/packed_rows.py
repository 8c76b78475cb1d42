"""Texts in rows of their own and several a row, and what must not differ between the two."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny

import specjax
from specjax.drafters import DRAFTERS, LM
from specjax.train.data.batches import stack
from specjax.train.data.packing import Packed
from specjax.train.data.rows import Fixed, Row
from specjax.train.drafter import Trainee
from specjax.train.objectives import checking
from specjax.train.objectives.base import Batch

WIDTH, VOCAB, K = 24, 31, 2
LENGTHS = (9, 5, 7, 12, 6)


def some_texts(seed: int = 0) -> list[Row]:
    """Of a prompt and a response, but the second, all of which may be labels."""
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(0, VOCAB, n).astype(np.int32) for n in LENGTHS]
    begins = [0 if i == 1 else 1 + i // 2 for i in range(len(tokens))]
    return [Row(t, np.arange(len(t)) >= b) for t, b in zip(tokens, begins, strict=True)]


def packed(texts: list[Row]) -> Batch:
    """As they fit, and as many rows as there are texts."""
    rows = Packed(Fixed(texts), WIDTH, seed=3)
    found = [rows.row(i, np.random.default_rng(0)) for i in range(len(rows))]
    assert len(found) == 2 and {len(np.unique(row.begin)) for row in found} == {2, 3}
    none = np.zeros(0, np.int32)
    return stack(found + [Row(none, none.astype(bool), none)] * (len(texts) - 2), WIDTH)


def trainee_of(kind: str, target: specjax.Model, num_draft: int = K) -> tuple[Any, Any]:
    """An objective that draws every anchor that there is, and masters."""
    entry = DRAFTERS[kind]
    spec: Any = LM(tiny.near(target, 0.3), num_draft) if entry.fresh is None else None
    spec = spec or entry.fresh(target, num_draft=num_draft)  # type: ignore[misc]
    every = {f.name for f in dataclasses.fields(entry.thing.objective())} & {"anchors"}
    hyper = dict.fromkeys(every, WIDTH)
    trainee, params = Trainee.of(kind, spec, hyper, num_draft=num_draft, compute_dtype=jnp.float32)
    checking.check_packs(trainee.objective)
    rng = np.random.default_rng(7)  # what begins at zero would have no gradient
    shaken = {n: p + 0.02 * rng.normal(size=p.shape).astype(np.float32) for n, p in params.items()}
    return trainee.objective, shaken


def teaches_what_it_teaches_alone(kind: str, target: specjax.Model) -> None:
    """Losses, weights, sums and gradients; and no neighbour changes a bit of them."""
    objective, params = trainee_of(kind, target)
    texts = some_texts()

    @jax.jit
    def slopes(params: Any, batch: Batch, net: Any) -> Any:
        def total(params: Any) -> Any:
            loss, weight, sums = objective(params, batch, net, jax.random.key(0))
            return loss, (weight, sums)

        return jax.value_and_grad(total, has_aux=True)(params)

    (loss, about), found = slopes(params, packed(texts), target.net)
    (own, own_about), wanted = slopes(params, stack(texts, WIDTH), target.net)
    assert own > 0 and own_about[0] > 5
    np.testing.assert_allclose(loss, own, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), about, own_about)
    for name, gradient in found.items():
        size = max(np.abs(wanted[name]).max(), 1e-3)
        assert np.abs(gradient - wanted[name]).max() <= 2e-6 * size, name
    assert sum(bool(np.abs(x).max() > 0) for x in found.values()) > len(found) / 2

    # Of the third text alone, among its neighbours and among others.
    silent = [dataclasses.replace(t, supervised=t.supervised & (t is texts[2])) for t in texts]
    others = [
        dataclasses.replace(t, tokens=(t.tokens + (i != 2)) % VOCAB) for i, t in enumerate(silent)
    ]
    one, other = (slopes(params, packed(some), target.net) for some in (silent, others))
    assert one[0][0] > 0
    jax.tree.map(np.testing.assert_array_equal, one, other)
