"""The first half of a gated MLP: ``act(gate x) * up x``, both matrices as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from specjax.core.ops.linear import linear, unfit
from specjax.core.ops.op import Timed, differentiated_as
from specjax.core.platform import Platform
from specjax.core.quantised import Quantised
from specjax.core.types import Array

Act = Callable[[Array], Array]


def reference(x: Array, w: Array | Quantised, act: Act, platform: Platform | None) -> Array:
    """See `gated`."""
    gate, up = jnp.split(linear(x, w, platform=platform, dtype=x.dtype), 2, axis=-1)
    return act(gate) * up


@dataclasses.dataclass(frozen=True)
class GatedInOneKernel:
    """A variant for GPUs: a kernel of our own (`ops.rows_by_matrix`), of what it takes."""

    interpret: bool = False  # the kernel as an XLA program: where there is no GPU, and slowly

    def __call__(
        self, x: Array, w: Array | Quantised, act: Act, platform: Platform | None
    ) -> Array:
        flat = x.reshape(-1, x.shape[-1])
        if isinstance(w, Quantised) or unfit(flat, w) is not None:
            return reference(x, w, act, platform)
        from specjax.core.ops import rows_by_matrix  # only here: it brings Pallas

        kernel = lambda x, w: rows_by_matrix.gated(x, w, act, interpret=self.interpret)
        slowly = lambda x, w: reference(x, w, act, platform)
        found: Array = differentiated_as(kernel, slowly)(flat, w)
        return found.reshape(*x.shape[:-1], -1)


# (Not among `ops.OPS`: an argument is a function.)
GATED = Timed(reference, {"gpu:pallas": GatedInOneKernel()}, name="gated product")


def gated(x: Array, w: Array | Quantised, act: Act, *, platform: Platform | None = None) -> Array:
    """``x`` [..., I] and ``w`` [2 O, I], of gate and up behind one another -> [..., O].

    Both products are rounded to the type of ``x``, which is that of the result.
    """
    found: Array = GATED(platform, x, w, act, platform)
    return found
