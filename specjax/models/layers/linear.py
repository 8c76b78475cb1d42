"""The one place that decides how a matrix product with a weight is written.

Weights are [out, in], the layout of the checkpoints. On CPU the product is written with the weight
on the left and float32 accumulation, a single bfloat16 row is padded to two, and the compiler is
kept from turning round a float32 product of a few rows: up to ten times faster than the usual form
(docs/design.md, "Fast on CPU"). Elsewhere it is the plain contraction, which compiles to one matrix
product without a transpose.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.core.platform import platform
from specjax.core.sharding import axis_size, is_replicated
from specjax.core.types import Array, pytree


@jax.custom_vjp
def _product(x: Array, w: Array) -> Array:
    """``x`` [M, I] times ``w`` [O, I] -> [M, O] float32."""
    if platform() != "cpu":
        return jnp.einsum("mi,oi->mo", x, w, preferred_element_type=jnp.float32)
    rows = x.shape[0]
    if rows == 1 and x.dtype == jnp.bfloat16:
        x = jnp.concatenate([x, x])  # a lone bf16 row takes a path without AMX, 15x slower
    y = jnp.einsum("oi,mi->om", w, x, preferred_element_type=jnp.float32)
    if x.dtype == jnp.float32 and 1 < rows <= 16:
        # Left to itself XLA folds the transpose into the product, weight on the right, and packs
        # the weights anew in every pass: up to 1.4 times slower. In bfloat16 that is the faster.
        y = jax.lax.optimization_barrier(y)
    return y.T[:rows]


def _product_fwd(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, w), (x, w)


def _product_bwd(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    # Derived automatically, these would be float32 products of upcast operands. Rounding the
    # cotangent to the operands' type keeps the backward pass on the matrix units.
    x, w = saved
    g = g.astype(x.dtype)
    dx = jnp.einsum("mo,oi->mi", g, w, preferred_element_type=jnp.float32)
    if platform() == "cpu" and x.dtype == jnp.bfloat16:
        # A product that contracts the rows of both operands is ten times slower than one whose
        # left operand is transposed first. The compiler would fold a plain transpose back into
        # the product; it leaves this one alone, and it is exact.
        eye = jnp.eye(x.shape[1], dtype=x.dtype)
        xt = jnp.einsum("ij,mj->im", eye, x, preferred_element_type=jnp.float32).astype(x.dtype)
        dw = jnp.einsum("im,mo->io", xt, g, preferred_element_type=jnp.float32)
        dw = jax.lax.optimization_barrier(dw).T
    else:
        dw = jnp.einsum("mo,mi->oi", g, x, preferred_element_type=jnp.float32)
    return dx.astype(x.dtype), dw.astype(w.dtype)


_product.defvjp(_product_fwd, _product_bwd)


def activation_dtype(weights: jnp.dtype) -> jnp.dtype:
    """The type of activations and caches between the products with ``weights`` of a type.

    On CPU always float32: a bfloat16 operation outside a matrix product is emulated there, and
    attention over a bfloat16 cache takes three times as long.
    """
    return jnp.dtype(jnp.float32) if platform() == "cpu" else jnp.dtype(weights)


@jax.custom_vjp
def _converted_rows(table: Array, tokens: Array) -> Array:
    # XLA's CPU compiler has no bfloat16 gather. Left alone it converts the whole table to float32
    # before each loop; where the table seems to vary with the tokens, it converts the rows only.
    table, tokens = jax.lax.optimization_barrier((table, tokens))
    return table[tokens].astype(jnp.float32)


def _converted_rows_fwd(table: Array, tokens: Array) -> tuple[Array, tuple[Array, Array]]:
    return _converted_rows(table, tokens), (table, tokens)


def _converted_rows_bwd(saved: tuple[Array, Array], g: Array) -> tuple[Array, None]:
    table, tokens = saved
    return jnp.zeros(table.shape, g.dtype).at[tokens].add(g).astype(table.dtype), None


_converted_rows.defvjp(_converted_rows_fwd, _converted_rows_bwd)


def lookup(table: Array, tokens: Array) -> Array:
    """The rows of an embedding ``table`` [V, D] of tokens [...], as activations [..., D]."""
    if platform() == "cpu" and table.dtype == jnp.bfloat16:
        return _converted_rows(table, tokens)
    return table[tokens].astype(activation_dtype(table.dtype))


@pytree
class Adapted:
    """A weight with a low-rank side path, ``up (down x)``, that some tokens take.

    `Linear` takes one where it has a plain weight (`Frozen.adapted`), which pays nothing for it.
    """

    weight: Array  # [O, I]
    down: Array  # [rank, I]
    up: Array  # [O, rank]
    tokens: Array  # [T] bool: those that take the side path

    def __getitem__(self, key: Any) -> Array:
        """A layer that reads the matrix itself, not its product with a token. Raises ValueError."""
        raise ValueError("this weight takes no side path: its layer uses it in other ways, too.")

    def side(self, x: Array) -> Array:
        """What it adds for ``x`` [..., T, I]: [..., T, O] float32, zeros for the other tokens."""
        taken = self.tokens.reshape((1,) * (x.ndim - 2) + (-1, 1))
        return jnp.where(taken, linear(linear(x, self.down), self.up), 0.0)


def linear(x: Array, w: Array | Adapted, bias: Array | None = None) -> Array:
    """``x`` [..., I] times ``w`` [O, I] in the type of ``w``, summed in float32 -> [..., O] f32."""
    if isinstance(w, Adapted):
        return linear(x, w.weight, bias) + w.side(x)
    y = _product(x.reshape(-1, x.shape[-1]).astype(w.dtype), w)
    y = y.reshape(*x.shape[:-1], w.shape[0])
    if bias is None:
        return y
    return y + bias.astype(jnp.float32).reshape((1,) * (y.ndim - 1) + (-1,))


def _adds_over_mesh() -> bool:
    """Whether a product that contracts a split dimension is a sum over devices, on a TPU."""
    return platform() == "tpu" and axis_size("model") > 1 and not is_replicated()


class Linear(nnx.Module):
    """``y = W x (+ b)``. ``axes`` are the logical axes of W [out, in]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        axes: tuple[str | None, str | None],
        bias: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        init = jax.random.normal(rngs.params(), (out_features, in_features)) * in_features**-0.5
        self.weight = nnx.Param(init.astype(dtype), axes=axes)
        if bias:
            self.bias = nnx.Param(jnp.zeros((out_features,), dtype), axes=(axes[0],))
        self.has_bias = bias
        self.splits_input = axes[1] is not None

    def __call__(self, x: Array) -> Array:
        """[..., in] -> [..., out] in the type of ``x``."""
        w: Array | Adapted = self.weight.get_value()
        if self.splits_input and not self.has_bias and _adds_over_mesh():
            # What devices add up crosses the mesh in the type of activations: half the bytes. Each
            # still accumulates its own part in float32.
            side = w.side(x).astype(x.dtype) if isinstance(w, Adapted) else None
            w = w.weight if isinstance(w, Adapted) else w
            y = jnp.einsum("...i,oi->...o", x.astype(w.dtype), w, preferred_element_type=x.dtype)
            return y if side is None else y + side
        return linear(x, w, self.bias[...] if self.has_bias else None).astype(x.dtype)
