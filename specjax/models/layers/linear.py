"""A layer that multiplies by a weight."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.core.dear import dear
from specjax.core.ops import add_product, adds_in_products, linear, sum_over_mesh
from specjax.core.platform import Platform
from specjax.core.quantised import Quantised
from specjax.core.sharding import axis_size
from specjax.core.types import Array, pytree, static
from specjax.models.layers.placed import Placed


@pytree
class Adapted:
    """A weight with a low-rank side path, ``up (down x)``, that some tokens take.

    `Linear` takes one where it has a plain weight (`Frozen.adapted`), which pays nothing for it.
    """

    weight: Array | Quantised | Adapted  # [O, I], or what has a side path for another part
    down: Array  # [rank, I]
    up: Array  # [O, rank]
    tokens: Array  # [T] bool: those that take the side path
    part: int | None = static(default=None)  # of a joined weight; None: of all its rows

    def __getitem__(self, key: Any) -> Array:
        """A layer that reads the matrix itself, not its product with a token. Raises ValueError."""
        raise ValueError("this weight takes no side path: its layer uses it in other ways, too.")

    def side(self, x: Array, platform: Platform | None) -> Array:
        """What it adds for ``x`` [..., T, I]: [..., T, O] float32, zeros for the other tokens."""
        taken = self.tokens.reshape((1,) * (x.ndim - 2) + (-1, 1))
        up = linear(linear(x, self.down, platform=platform), self.up, platform=platform)
        return jnp.where(taken, up, 0.0)


class Linear(Placed):
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

    @classmethod
    def holding(cls, weight: Any, bias: Any, *, axes: tuple[str | None, str | None]) -> Linear:
        """One with these weights, or their shapes; ``bias`` None: without."""
        (rows, width), dtype = weight.shape, weight.dtype
        kwargs: dict[str, Any] = {"axes": axes, "bias": bias is not None, "dtype": dtype}
        made: Linear = nnx.eval_shape(lambda: cls(width, rows, **kwargs, rngs=nnx.Rngs(0)))
        made.weight = nnx.Param(weight, axes=axes)
        if bias is not None:
            made.bias = nnx.Param(bias, axes=(axes[0],))
        return made

    def __call__(self, x: Array) -> Array:
        """[..., in] -> [..., out] in the type of ``x``."""
        given: Array | Quantised | Adapted = self.weight.get_value()
        w: Any = given.weight if isinstance(given, Adapted) else given
        if self._adds_over_mesh():
            y = sum_over_mesh(x, w, platform=self.platform)
        else:
            bias = self.bias[...] if self.has_bias else None
            y = linear(x, w, bias, platform=self.platform, dtype=x.dtype)
        if isinstance(given, Adapted):
            y = y + given.side(x, self.platform).astype(y.dtype)
        return dear(y.astype(x.dtype))

    def added_to(self, x: Array, y: Array) -> tuple[Array, Array] | None:
        """``x + self(y)`` and its squares (`ops.add_product`), both in one kernel; None: not so."""
        w: Any = self.weight.get_value()
        plain = not self.has_bias and not isinstance(w, Adapted)
        if not plain or not adds_in_products(x, y, w, self.platform):
            return None
        return add_product(x, y, w, platform=self.platform)

    def _adds_over_mesh(self) -> bool:
        """Whether the product contracts a dimension that is split over devices."""
        split = self.splits_input and axis_size("model") > 1 and not self.replicated
        return split and not self.has_bias
