"""The product with a weight, [out, in] as in the checkpoints, summed in float32.

On CPU it is written with the weight on the left, a single bfloat16 row padded to two, and the
compiler is kept from turning round a float32 product of a few rows: up to ten times faster than the
usual form (docs/design.md, "Fast on CPU"). Elsewhere it is the plain contraction, which compiles to
one matrix product without a transpose; on GPUs it may be a kernel of our own, if that is asked for.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.ops.op import Op, Timed, differentiated_as
from specjax.core.platform import Platform, here
from specjax.core.quantised import Quantised
from specjax.core.types import Array


def product(x: Array, w: Array, dtype: Any = jnp.float32) -> Array:
    """``x`` [M, I] times ``w`` [O, I], summed in float32 -> [M, O] in ``dtype``."""
    return jnp.einsum("mi,oi->mo", x, w, preferred_element_type=jnp.float32).astype(dtype)


def product_on_cpu(x: Array, w: Array, dtype: Any = jnp.float32) -> Array:
    rows = x.shape[0]
    if rows == 1 and x.dtype == jnp.bfloat16:
        x = jnp.concatenate([x, x])  # a lone bf16 row takes a path without AMX, 15x slower
    if x.dtype == jnp.float32 and 4 < rows < 16:
        x = jnp.pad(x, ((0, -rows % 8), (0, 0)))  # odd numbers of rows take up to a third longer
    y = jnp.einsum("oi,mi->om", w, x, preferred_element_type=jnp.float32)
    if x.dtype == jnp.float32 and 1 < rows <= 16:
        # Left to itself XLA folds the transpose into the product, weight on the right, and packs
        # the weights anew in every pass: up to 1.4 times slower. In bfloat16 that is the faster.
        y = jax.lax.optimization_barrier(y)
    return y.T[:rows].astype(dtype)


@dataclasses.dataclass(frozen=True)
class InOneKernel:
    """A variant for GPUs: a kernel of our own (`ops.rows_by_matrix`), of what it takes."""

    interpret: bool = False  # the kernel as an XLA program: where there is no GPU, and slowly

    def __call__(self, x: Array, w: Array, dtype: Any = jnp.float32) -> Array:
        if unfit(x, w) is not None:
            return product_on_gpu(x, w, dtype)
        from specjax.core.ops import rows_by_matrix  # only here: it brings Pallas

        return rows_by_matrix.product(x, w, dtype, interpret=self.interpret)


_MOST_ROWS = 128  # of a product that takes as long as reading its weight


def unfit(x: Any, w: Array) -> str | None:
    """Why our kernel does not take a product of an array, or its shape; None: it does."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        return "it is not known how the weight lies on the mesh"
    if x.shape[0] > _MOST_ROWS:
        return f"more than {_MOST_ROWS} rows take longer than reading the weight"
    if x.dtype != w.dtype or x.dtype not in (jnp.float32, jnp.bfloat16):
        return "both are not of one type, float32 or bfloat16"
    return None


def product_on_gpu(x: Array, w: Array, dtype: Any = jnp.float32) -> Array:
    """XLA would multiply a lone row in TF32, and convert both operands first."""
    if x.shape[0] > 1 or x.dtype != jnp.bfloat16 or w.dtype != jnp.bfloat16:
        return product(x, w, dtype)
    found: Array = differentiated_as(_in_bfloat16, product)(x, w)
    return found.astype(dtype)


def _in_bfloat16(x: Array, w: Array) -> Array:
    how: dict[str, Any] = {"precision": jax.lax.DotAlgorithmPreset.BF16_BF16_F32}
    found: Array = jnp.einsum("mi,oi->mo", x, w, preferred_element_type=jnp.float32, **how)
    return found


def weight_gradient(x: Array, g: Array) -> Array:
    """``x`` [M, I] and the cotangent ``g`` [M, O] -> [O, I] float32."""
    return jnp.einsum("mo,mi->oi", g, x, preferred_element_type=jnp.float32)


def weight_gradient_on_cpu(x: Array, g: Array) -> Array:
    if x.dtype != jnp.bfloat16:
        return weight_gradient(x, g)
    # A product that contracts the rows of both operands is ten times slower than one whose left
    # operand is transposed first. The compiler would fold a plain transpose back into the product;
    # it leaves this one alone, and it is exact.
    eye = jnp.eye(x.shape[1], dtype=x.dtype)
    xt = jnp.einsum("ij,mj->im", eye, x, preferred_element_type=jnp.float32).astype(x.dtype)
    dw = jnp.einsum("im,mo->io", xt, g, preferred_element_type=jnp.float32)
    found: Array = jax.lax.optimization_barrier(dw).T
    return found


def whole_sum(x: Array, w: Array | Quantised, platform: Platform | None) -> Array:
    """``x`` [..., I] times ``w`` [O, I] -> [..., O] float32."""
    return linear(x, w, platform=platform)


def rounded_before_the_sum(x: Array, w: Array | Quantised, platform: Platform | None) -> Array:
    """What devices add up crosses the mesh in the type of ``x``: half the bytes in bfloat16.

    Each still accumulates its own part in float32.
    """
    if isinstance(w, Quantised):
        return whole_sum(x, w, platform)
    return jnp.einsum("...i,oi->...o", x.astype(w.dtype), w, preferred_element_type=x.dtype)


PRODUCT = Timed(
    product,
    {"cpu": product_on_cpu, "gpu": product_on_gpu, "gpu:pallas": InOneKernel()},
    name="product",
)
WEIGHT_GRADIENT = Op(weight_gradient, {"cpu": weight_gradient_on_cpu})
# Of a weight whose input dimension is split over the devices of a mesh.
SUM_OVER_MESH = Op(whole_sum, {"gpu": rounded_before_the_sum, "tpu": rounded_before_the_sum})


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x: Array, w: Array, platform: Platform | None, dtype: Any = jnp.float32) -> Array:
    found: Array = PRODUCT(platform, x, w, dtype)
    return found


def _product_fwd(
    x: Array, w: Array, platform: Platform | None, dtype: Any
) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, w, platform, dtype), (x, w)


def _product_bwd(
    platform: Platform | None, dtype: Any, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    del dtype
    # Derived automatically, these would be float32 products of upcast operands. Rounding the
    # cotangent to the operands' type keeps the backward pass on the matrix units.
    x, w = saved
    g = g.astype(x.dtype)
    dx = jnp.einsum("mo,oi->mi", g, w, preferred_element_type=jnp.float32)
    dw = WEIGHT_GRADIENT.on(platform)(x, g)
    return dx.astype(x.dtype), dw.astype(w.dtype)


_product.defvjp(_product_fwd, _product_bwd)


def _quantised_product(x: Array, w: Quantised, platform: Platform | None) -> Array:
    if w.by_row:
        # XLA's kernels take 8 bits as they are; ours would have them written out first.
        values = w.values.astype(w.dtype)
        return _product(x, values, xlas(platform)) * w.factors.astype(jnp.float32).T
    found: Array = GROUPED.on(platform)(x, w, platform)
    return found


def written_out(x: Array, w: Quantised, platform: Platform | None) -> Array:
    """With the matrix as numbers of its dtype."""
    return _product(x, w[...], xlas(platform))


def by_group(x: Array, w: Quantised, platform: Platform | None) -> Array:
    """A product for each group, whose sums are scaled: [G, M, O] numbers instead of [O, I]."""
    (rows, width), groups = w.shape, w.groups
    parts = w.values.astype(w.dtype).reshape(rows, groups, width // groups)
    fed = x.reshape(-1, groups, width // groups)
    how: Any = {"preferred_element_type": jnp.float32}
    sums = jnp.einsum("mgi,ogi->gmo", fed, parts, **how)
    if w.zeros is not None:
        of_zeros = fed.astype(jnp.float32).sum(-1).T[:, :, None]
        sums = sums - of_zeros * w.zeros.astype(jnp.float32).T[:, None, :]
    return (sums * w.factors.astype(jnp.float32).T[:, None, :]).sum(0)


def _has_smaller_sums(x: Array, w: Quantised) -> bool:
    """Whether sums by group, in float32, are less than a quarter of the matrix written out."""
    return 8 * x.shape[0] * w.groups <= w.shape[-1]


def on_tpu(x: Array, w: Quantised, platform: Platform | None) -> Array:
    """By group, as factors of columns would move numbers between lanes."""
    return (by_group if _has_smaller_sums(x, w) else written_out)(x, w, platform)


_NEAR = 1 << 25  # bytes that a GPU's second-level cache has room for, beside others


def on_gpu(x: Array, w: Quantised, platform: Platform | None) -> Array:
    """Written out where that stays in the second-level cache, or where products take longer."""
    small = w.size * jnp.dtype(w.dtype).itemsize <= _NEAR
    way = written_out if small or not _has_smaller_sums(x, w) else by_group
    return way(x, w, platform)


GROUPED = Op(written_out, {"gpu": on_gpu, "tpu": on_tpu})


def linear(
    x: Array,
    w: Array | Quantised,
    bias: Array | None = None,
    *,
    platform: Platform | None = None,
    dtype: Any = jnp.float32,
) -> Array:
    """``x`` [..., I] times ``w`` [O, I] in the type of ``w``, summed in float32.

    Returns:
      [..., O] in ``dtype``, rounded once.
    """
    flat = x.reshape(-1, x.shape[-1]).astype(w.dtype)
    if isinstance(w, Quantised):
        y = _quantised_product(flat, w, platform)
    else:
        y = _product(flat, w, platform, jnp.dtype(dtype if bias is None else jnp.float32))
    y = y.reshape(*x.shape[:-1], w.shape[0])
    if bias is not None:
        y = y + bias.astype(jnp.float32).reshape((1,) * (y.ndim - 1) + (-1,))
    return y.astype(dtype)


def xlas(platform: Platform | None) -> Platform:
    """The platform without products of our own."""
    there = platform or here()
    ours = there.kernels in ("pallas", "tuned")
    return dataclasses.replace(there, kernels="xla", choices=None) if ours else there


def sum_over_mesh(x: Array, w: Array | Quantised, *, platform: Platform | None = None) -> Array:
    """`linear` where I is split over the devices of a mesh: in float32, or the type of ``x``."""
    y: Array = SUM_OVER_MESH.on(platform)(x, w, platform)
    return y


def activation_dtype(weights: jnp.dtype, platform: Platform | None = None) -> jnp.dtype:
    """The type of activations and caches between the products with ``weights`` of a type.

    On CPU always float32: a bfloat16 operation outside a matrix product is emulated there, and
    attention over a bfloat16 cache takes three times as long.
    """
    return jnp.dtype(jnp.float32) if (platform or here()).name == "cpu" else jnp.dtype(weights)
