"""Losses of a guess against a float64 reference of their own: values, gradients, minima."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

from specjax.train import losses

V, IDS = 9, np.array([0, 2, 3, 5, 8])


def laws(teacher: np.ndarray, student: np.ndarray, ids: np.ndarray | None) -> tuple:
    """p as the target gives it, p renormalised on the draft's vocabulary, and q."""
    p = softmax(teacher, axis=-1)
    p = p if ids is None else p[..., ids]
    return p, p / p.sum(-1, keepdims=True), softmax(student, axis=-1)


def alpha(p, q):
    return np.minimum(p, q).sum(-1)


def lk(p, renormalised, q, w):
    return w * rel_entr(renormalised, q).sum(-1) + (1 - w) * (1 - alpha(p, q))


REFERENCE = {
    "forward_kl": lambda p, r, q: rel_entr(r, q).sum(-1),
    "reverse_kl": lambda p, r, q: rel_entr(q, r).sum(-1),
    "tv": lambda p, r, q: 1 - alpha(p, q),
    "nla": lambda p, r, q: -np.log(alpha(p, q)),
    "lk_hybrid": lambda p, r, q: lk(p, r, q, np.exp(-3 * alpha(p, q))),
}


def logits(seed: int, size: int, rows: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, size)) * 2


@pytest.mark.parametrize("ids", [None, IDS], ids=["whole", "reduced"])
def test_values_and_gradients_are_the_reference(ids):
    teacher, student = logits(0, V), logits(1, V if ids is None else len(ids))
    given = None if ids is None else jnp.asarray(ids)

    @jax.jit
    def everything(student):
        def one(loss):
            value = lambda s: loss(jnp.float32(teacher), s, given)
            return value(student), jax.grad(lambda s: value(s).sum())(student)

        return {name: one(loss) for name, loss in losses.DIVERGENCES.items()}

    found = everything(jnp.float32(student))
    assert set(found) == set(REFERENCE)
    p, renormalised, q = laws(teacher, student, ids)
    weight = np.exp(-3 * alpha(p, q))  # carries no gradient: held still in the differences
    for name, (values, grads) in found.items():
        expected = REFERENCE[name](p, renormalised, q)
        np.testing.assert_allclose(values, expected, rtol=2e-5, atol=2e-6, err_msg=name)

        def reference(student, name=name):
            q = softmax(student, axis=-1)
            if name == "lk_hybrid":
                return lk(p, renormalised, q, weight)
            return REFERENCE[name](p, renormalised, q)

        numeric = np.zeros_like(student)
        for i in range(student.shape[1]):
            step = np.zeros_like(student)
            step[:, i] = 1e-5
            numeric[:, i] = (reference(student + step) - reference(student - step)) / 2e-5
        np.testing.assert_allclose(grads, numeric, rtol=1e-3, atol=1e-5, err_msg=name)


def test_the_minimum_is_the_teacher_itself():
    teacher = jnp.float32(logits(2, V))
    for name, loss in losses.DIVERGENCES.items():
        # Not compiled: the acceptance terms have a kink here, of whose slopes the gradient takes
        # the middle one only where p and q are equal bit for bit.
        total = lambda student, loss=loss: (loss(teacher, student).sum(), loss(teacher, student))
        (_, value), grad = jax.value_and_grad(total, has_aux=True)(teacher)
        np.testing.assert_allclose(value, 0.0, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(grad, 0.0, atol=1e-6, err_msg=name)
        for seed in range(5):
            assert (np.asarray(loss(teacher, jnp.float32(logits(10 + seed, V)))) > 0).all(), name


def test_no_gradient_reaches_the_teacher():
    teacher, student = jnp.float32(logits(0, V)), jnp.float32(logits(1, V))
    total = lambda t: sum(loss(t, student).sum() for loss in losses.DIVERGENCES.values())
    np.testing.assert_array_equal(jax.jit(jax.grad(total))(teacher), 0.0)


def test_negative_log_acceptance_of_a_point_mass_is_cross_entropy():
    labels, student = jnp.arange(6) % V, jnp.float32(logits(1, V))
    point = jnp.where(jax.nn.one_hot(labels, V) > 0, 0.0, -jnp.inf)

    def pair(student):
        return losses.nla(point, student).sum(), losses.cross_entropy(student, labels).sum()

    (a, b), (da, db) = jax.jit(lambda s: (pair(s), jax.jacobian(pair)(s)))(student)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(da, db, atol=1e-6)
    expected = -log_softmax(logits(1, V), axis=-1)[np.arange(6), np.arange(6) % V]
    np.testing.assert_allclose(losses.cross_entropy(student, labels), expected, rtol=1e-5)
    # Divergences from a point mass stay finite, and so do their gradients.
    grad = jax.jit(jax.grad(lambda s: losses.lk_hybrid(point, s).sum()))(student)
    assert np.isfinite(grad).all()


def test_what_the_draft_cannot_say_counts_as_rejected():
    teacher = jnp.float32(logits(0, V))
    ids = jnp.asarray(IDS)
    held = softmax(logits(0, V), axis=-1)[:, IDS].sum(-1)
    np.testing.assert_allclose(jnp.exp(losses.restrict(teacher, ids)).sum(-1), held, rtol=1e-5)
    best = teacher[:, ids]
    np.testing.assert_allclose(losses.forward_kl(teacher, best, ids), 0.0, atol=1e-6)
    np.testing.assert_allclose(losses.total_variation(teacher, best, ids), 1 - held, rtol=1e-4)


def test_weights_of_a_block():
    np.testing.assert_allclose(losses.decay_weights(4, 7.0), np.exp(-np.arange(4) / 7), rtol=1e-6)
    q = np.random.default_rng(3).uniform(size=(2, 5))
    for a in (0.0, 0.5, 1.0):
        s = (1 - a) * q + a
        expected = [
            [sum(np.prod(row[: m + 1]) for m in range(k, 5)) for k in range(5)] for row in s
        ]
        found = losses.dpace_weights(jnp.float32(np.log(q)), alpha=a)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    # With alpha 0 the weighted cross entropy has the gradient of the expected accepted length.
    log_q = jnp.float32(np.log(q))
    length = jax.grad(lambda x: jnp.cumprod(jnp.exp(x), -1).sum())(log_q)
    surrogate = jax.grad(lambda x: (losses.dpace_weights(x, alpha=0.0) * x).sum())(log_q)
    np.testing.assert_allclose(surrogate, length, rtol=1e-5)
    # What lies behind the text's end changes nothing.
    counted = jnp.arange(5)[None] < 3
    whole = losses.dpace_weights(jnp.where(counted, log_q, -jnp.inf), 0.5, counted)
    np.testing.assert_allclose(whole[:, :3], losses.dpace_weights(log_q[:, :3], 0.5), rtol=1e-6)
    np.testing.assert_array_equal(whole[:, 3:], 0.0)
