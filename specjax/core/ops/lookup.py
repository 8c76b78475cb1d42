"""The rows of an embedding."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from specjax.core.ops.linear import activation_dtype
from specjax.core.ops.op import Op
from specjax.core.platform import Platform
from specjax.core.sharding import axis_size
from specjax.core.types import Array


def rows(table: Array, tokens: Array, dtype: jnp.dtype) -> Array:
    """Rows ``tokens`` [...] of ``table`` [V, D] -> [..., D] in a type."""
    return table[tokens].astype(dtype)


def rows_on_cpu(table: Array, tokens: Array, dtype: jnp.dtype) -> Array:
    if table.dtype != jnp.bfloat16:
        return rows(table, tokens, dtype)
    return _converted_rows(table, tokens).astype(dtype)


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


def rows_on_gpu(table: Array, tokens: Array, dtype: jnp.dtype) -> Array:
    if tokens.ndim == 0 or tokens.size != 1 or axis_size("model") == 1:
        return rows(table, tokens, dtype)
    # The compiler makes a slice of a lone row's lookup, and for a slice of a table that is split
    # over a mesh it gathers all of it on every device, in every pass.
    return rows(table, jnp.concatenate([tokens, tokens]), dtype)[: tokens.shape[0]]


ROWS = Op(rows, {"cpu": rows_on_cpu, "gpu": rows_on_gpu})


def lookup(table: Array, tokens: Array, *, platform: Platform | None = None) -> Array:
    """The rows of an embedding ``table`` [V, D] of tokens [...], as activations [..., D]."""
    found: Array = ROWS.on(platform)(table, tokens, activation_dtype(table.dtype, platform))
    return found
