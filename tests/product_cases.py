"""A product in a kernel of our own, interpreted, against its reference."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core.ops import Norm, Unnormed, gated
from specjax.core.ops.gated import GatedInOneKernel
from specjax.core.ops.likeliest import InTheProduct, of_logits
from specjax.core.ops.linear import InOneKernel, product
from specjax.core.ops.stream import (
    AddedInside,
    NormedInside,
    product_of_norm,
    sum_with_product,
)
from specjax.core.platform import Platform


def check(rows: int, width: int, columns: int, dtype: Any) -> None:
    """In float32 equal to rounding; in bfloat16, whose sums are float32 too, one step apart."""
    rng = np.random.default_rng(rows)
    drawn = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    x, w = (y.astype(dtype) for y in (drawn(rows, width), drawn(columns, width) * width**-0.5))
    for out in {jnp.dtype(jnp.float32), jnp.dtype(dtype)}:
        want, got = (
            jax.jit(way, static_argnums=2)(x, w, out) for way in (product, InOneKernel(True))
        )
        assert got.shape == want.shape and got.dtype == want.dtype == out
        close = 1e-5 if out == jnp.float32 else 2**-7
        same(got, want, close)
    both = jnp.concatenate([w, w[::-1]])
    plain = Platform("gpu", kernels="xla")
    want = jax.jit(lambda: gated(x, both, jax.nn.silu, platform=plain))()
    got = jax.jit(lambda: GatedInOneKernel(True)(x[None], both, jax.nn.silu, None))()[0]
    assert got.shape == want.shape and got.dtype == want.dtype == dtype
    close = 1e-5 if dtype == jnp.float32 else 2**-6  # of two roundings
    same(got, want, close)


def check_likeliest(rows: int, width: int, columns: int, dtype: Any) -> None:
    """Numbers are whole, so that sums are exact: many are equal, and the lowest is meant."""
    rng = np.random.default_rng(columns)
    whole = lambda *shape: jnp.asarray(rng.integers(-1, 2, shape), dtype)
    x, w = whole(2, rows, width), whole(columns, width).at[:, 0].set(1)
    x = x.at[0, :, 0].set(-(2.0 ** width.bit_length()))  # of half of them all are below 0
    w = jnp.concatenate([w, w])  # each entry is twice there
    ids = jnp.asarray(rng.permutation(3 * columns)[: 2 * columns], jnp.int32)
    logits = np.asarray(x, np.float32) @ np.asarray(w, np.float32).T
    largest = logits == logits.max(-1, keepdims=True)
    for names in (None, ids):
        known = np.arange(2 * columns) if names is None else np.asarray(names)
        want = np.where(largest, known, 3 * columns).min(-1)
        ways = InTheProduct(True), of_logits
        for way, cast in itertools.product(ways, (dtype, jnp.float32)):
            got = jax.jit(lambda x, way=way, names=names: way(x, w, names, Platform("cpu")))(
                x.astype(cast)
            )
            assert got.shape == want.shape and got.dtype == jnp.int32
            np.testing.assert_array_equal(got, want)
        broken = jax.jit(
            lambda names=names: InTheProduct(True)(x, w.at[1].set(jnp.nan), names, None)
        )()
        assert (broken == known[1]).all()  # no number, but a name


def check_stream(rows: int, width: int, inner: int, norm: Norm, dtype: Any) -> None:
    """A sum with a product, and its norm within the products behind it.

    In float32 equal to rounding; in bfloat16 one step apart for each number that is rounded.
    """
    rng = np.random.default_rng(rows)
    drawn = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    scaled = lambda *shape: (drawn(*shape) * shape[-1] ** -0.5).astype(dtype)
    x, y, w, gain = drawn(rows, width), drawn(rows, inner), scaled(width, inner), drawn(width)
    plain, exact = Platform("gpu", kernels="xla"), jnp.dtype(dtype) == jnp.float32
    want, _ = jax.jit(lambda: sum_with_product(x, y, w, plain))()
    total, squares = jax.jit(lambda: AddedInside(True)(x[None], y[None], w, None))()
    total, squares = total[0], squares[0]
    assert total.shape == want.shape and total.dtype == want.dtype == dtype
    same(total, want, 1e-5 if exact else 2**-6)
    full = total.astype(jnp.float32)
    np.testing.assert_allclose(squares.sum(-1), (full * full).sum(-1), rtol=1e-5)

    def both(states: Unnormed, w: Any, act: Any) -> tuple[Any, Any]:
        ways = (product_of_norm, plain), (NormedInside(True), None)
        want, got = (jax.jit(lambda w, f=f, on=on: f(states, w, act, on))(w) for f, on in ways)
        assert got.shape == want.shape and got.dtype == want.dtype == dtype
        return got, want

    states = Unnormed(total, squares, gain, norm)
    same(*both(states, scaled(inner, width), None), 1e-5 if exact else 2**-6)
    same(*both(states, scaled(2 * inner, width), jax.nn.silu), 1e-5 if exact else 2**-5)
    # What is multiplied is rounded where the reference rounds: times the identity, all of it.
    got, want = both(states, jnp.eye(width, dtype=dtype), None)
    same(got, want, 2e-6 if exact else 2**-7)
    assert exact or (got == want).mean() > 0.999  # (else squares were added up in another order)


def same(got: Any, want: Any, close: float) -> None:
    numbers = (y.astype(jnp.float32) for y in (got, want))
    np.testing.assert_allclose(*numbers, rtol=close, atol=close)
