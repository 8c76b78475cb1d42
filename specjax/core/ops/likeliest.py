"""The likeliest token behind a state, where nothing else of its logits is asked.

On GPUs with products of our own the head's kernel compares as well (`ops.rows_by_matrix`): each of
its programs leaves the largest of the products it formed, and logits are never written.
"""

from __future__ import annotations

import dataclasses
import math

import jax

from specjax.core.ops.argmax import argmax, in_pairs
from specjax.core.ops.linear import linear, unfit
from specjax.core.ops.op import Timed
from specjax.core.platform import Platform
from specjax.core.quantised import Quantised
from specjax.core.types import Array


def of_logits(
    x: Array, w: Array | Quantised, names: Array | None, platform: Platform | None
) -> Array:
    """See `likeliest`."""
    return argmax(linear(x, w, platform=platform), names=names, platform=platform)


@dataclasses.dataclass(frozen=True)
class InTheProduct:
    """A variant for GPUs: what programs of the product found is compared once more."""

    interpret: bool = False  # the kernel as an XLA program: where there is no GPU, and slowly

    def __call__(
        self, x: Array, w: Array | Quantised, names: Array | None, platform: Platform | None
    ) -> Array:
        if isinstance(w, Quantised) or unfit_head(x, w) is not None:
            return of_logits(x, w, names, platform)
        from specjax.core.ops import rows_by_matrix  # only here: it brings Pallas

        # Which entry is the largest has no gradient, and the kernel none either.
        flat, w = jax.lax.stop_gradient((x.reshape(-1, x.shape[-1]).astype(w.dtype), w))
        found = rows_by_matrix.largest(flat, w, names, interpret=self.interpret)
        return in_pairs(*found).reshape(x.shape[:-1])


def unfit_head(x: Array, w: Array | Quantised) -> str | None:
    """Why the kernel does not take states [..., D] and a head; None: it does."""
    if isinstance(w, Quantised):
        return "the head is in 8 bits, which XLA's kernels take as they are"
    flat = jax.ShapeDtypeStruct((math.prod(x.shape[:-1]), x.shape[-1]), w.dtype)
    return unfit(flat, w)


# (Not among `ops.OPS`, as it is nothing but two of them.)
LIKELIEST = Timed(of_logits, {"gpu:pallas": InTheProduct()}, name="likeliest")


def likeliest(
    x: Array, w: Array | Quantised, names: Array | None = None, *, platform: Platform | None = None
) -> Array | None:
    """The largest entry of ``x`` [..., D] times ``w`` [V, D], by index or ``names`` [V] int32.

    Returns:
      [...] int32, of equal ones the lowest; None: it is not found without logits, which whoever
      asks had better form.
    """
    ours = LIKELIEST.way(platform, x, w, names, platform) is not of_logits
    if not ours or unfit_head(x, w) is not None:
        return None
    found: Array = LIKELIEST(platform, x, w, names, platform)
    return found
