"""Products of what a norm makes of states, and products that are added to states.

A decoder's layers are ``x = x + W_o f(W_i norm(x))``. Where products are kernels of our own
(`ops.rows_by_matrix`), that of W_o adds as well, and leaves the squares of the sum added up; so
that of W_i needs no more of a row than it reads anyway to norm it.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from specjax.core.ops.gated import Act, gated
from specjax.core.ops.linear import linear
from specjax.core.ops.linear import unfit as unfit_product
from specjax.core.ops.norm import Norm, add_norm
from specjax.core.ops.op import Timed, differentiated_as
from specjax.core.platform import Platform
from specjax.core.quantised import Quantised
from specjax.core.types import Array, pytree, static

# Every program of a product norms all rows: beyond these that takes longer than a kernel more.
_MOST_ROWS = 32
_WIDEST = 1 << 14  # as of a norm by itself


@pytree
class Unnormed:
    """States that are to be normed."""

    states: Array  # [..., D]
    squares: Array  # [..., P] float32: of each of P shares of a row the sum of its squares
    weight: Array  # [D], of the norm
    norm: Norm = static()

    def formed(self, platform: Platform | None) -> Array:
        """The norm, [..., D] in the type of the states."""
        return add_norm(self.states, None, self.weight, self.norm, platform=platform)[1]


def product_of_norm(
    x: Unnormed, w: Array | Quantised, act: Act | None, platform: Platform | None
) -> Array:
    """See `norm_product`."""
    normed = x.formed(platform)
    if act is not None:
        return gated(normed, w, act, platform=platform)
    return linear(normed, w, platform=platform, dtype=normed.dtype)


@dataclasses.dataclass(frozen=True)
class NormedInside:
    """A variant of `norm_product`: one kernel, of what it takes."""

    interpret: bool = False  # the kernel as an XLA program: where there is no GPU, and slowly

    def __call__(
        self, x: Unnormed, w: Array | Quantised, act: Act | None, platform: Platform | None
    ) -> Array:
        if unfit(x.states, w) is not None:
            return product_of_norm(x, w, act, platform)
        from specjax.core.ops import rows_by_matrix  # only here: it brings Pallas

        def kernel(x: Unnormed, w: Array) -> Array:
            flat = x.states.reshape(-1, x.states.shape[-1])
            squares = x.squares.reshape(flat.shape[0], -1)
            normed = rows_by_matrix.Normed(x.norm, x.weight, squares)
            if act is not None:
                found = rows_by_matrix.gated(flat, w, act, normed, interpret=self.interpret)
            else:
                found = rows_by_matrix.of_norm(flat, w, normed, interpret=self.interpret)
            return found.reshape(*x.states.shape[:-1], -1)

        slowly = lambda x, w: product_of_norm(x, w, act, platform)
        found: Array = differentiated_as(kernel, slowly)(x, w)
        return found


def sum_with_product(
    x: Array, y: Array, w: Array | Quantised, platform: Platform | None
) -> tuple[Array, Array]:
    """See `add_product`."""
    total = x + linear(y, w, platform=platform, dtype=x.dtype)
    full = total.astype(jnp.float32)
    return total, (full * full).sum(-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class AddedInside:
    """A variant of `add_product`: one kernel, of what it takes."""

    interpret: bool = False

    def __call__(
        self, x: Array, y: Array, w: Array | Quantised, platform: Platform | None
    ) -> tuple[Array, Array]:
        if unfit(x, w) is not None or unfit(y, w) is not None:
            return sum_with_product(x, y, w, platform)
        from specjax.core.ops import rows_by_matrix  # only here: it brings Pallas

        def kernel(x: Array, y: Array, w: Array) -> tuple[Array, Array]:
            flat_x, flat_y = (states.reshape(-1, states.shape[-1]) for states in (x, y))
            found = rows_by_matrix.added(flat_x, flat_y, w, interpret=self.interpret)
            total, squares = (z.reshape(*x.shape[:-1], -1) for z in found)
            return total, squares

        slowly = lambda x, y, w: sum_with_product(x, y, w, platform)
        found: tuple[Array, Array] = differentiated_as(kernel, slowly)(x, y, w)
        return found


def unfit(x: Array, w: Array | Quantised) -> str | None:
    """Why neither kernel takes states [..., D] beside a weight; None: they do."""
    if isinstance(w, Quantised):
        return "the weight is in 8 or 4 bits, which XLA's kernels take as they are"
    flat = x.reshape(-1, x.shape[-1])
    if flat.shape[0] > _MOST_ROWS:
        return f"more than {_MOST_ROWS} rows are normed faster by themselves"
    if flat.shape[-1] > _WIDEST:
        return f"a state is wider than {_WIDEST}"
    return unfit_product(flat, w)


# (Not among `ops.OPS`: an argument is a function or a norm.)
NORM_PRODUCT = Timed(product_of_norm, {"gpu:pallas": NormedInside()}, name="product of a norm")
ADD_PRODUCT = Timed(sum_with_product, {"gpu:pallas": AddedInside()}, name="sum with a product")


def norm_product(
    x: Unnormed, w: Array | Quantised, act: Act | None = None, *, platform: Platform | None = None
) -> Array:
    """The norm of states [..., D] times ``w`` [O, D] -> [..., O] in the type of the states.

    With ``act``, as `ops.gated` of the norm and ``w`` [2 O, D]. What differs from both one behind
    the other is the order in which a row's squares are added up.
    """
    found: Array = NORM_PRODUCT(platform, x, w, act, platform)
    return found


def add_product(
    x: Array, y: Array, w: Array | Quantised, *, platform: Platform | None = None
) -> tuple[Array, Array]:
    """``x`` [..., D] plus ``y`` [..., I] times ``w`` [D, I], rounded to the type of ``x``.

    Returns:
      The sum [..., D] in that type, and of each of P shares of a row the sum of its squares
      [..., P] float32, for any P.
    """
    found: tuple[Array, Array] = ADD_PRODUCT(platform, x, y, w, platform)
    return found


def norms_in_products(platform: Platform | None) -> bool:
    """Whether a norm is better formed by the product behind it than by itself."""
    return NORM_PRODUCT.is_other(platform)


def adds_in_products(x: Array, y: Array, w: Array | Quantised, platform: Platform | None) -> bool:
    """Whether `add_product` is one kernel of these; else sum and norm had better be one."""
    ours = ADD_PRODUCT.way(platform, x, y, w, platform) is not sum_with_product
    return ours and unfit(x, w) is None and unfit(y, w) is None
