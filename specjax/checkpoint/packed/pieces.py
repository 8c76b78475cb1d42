"""What a packed matrix is kept as, where it is not unpacked: the arrays of a `Quantised`."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from specjax.checkpoint.packed.digits import Index
from specjax.core.tensors import Made, Pieces, Tensor

_KEPT = (np.dtype(np.float32), np.dtype(jnp.bfloat16))  # factors of other types become float32


def pieces_of(
    shape: tuple[int, int],
    bits: int,
    numbers: Callable[[Index], np.ndarray],
    factors: Tensor,
    zeros: Callable[[], np.ndarray] | None,
) -> Pieces | None:
    """Of unsigned numbers of 4 or 8 bits; None if they cannot be kept.

    Args:
      shape: [out, in].
      numbers: of a box of it.
      factors: [out, groups].
      zeros: [out, groups]; None: the middle.
    """
    (out, size), groups, middle = shape, factors.shape[1], 2 ** (bits - 1)
    if bits not in (4, 8) or size % groups:
        return None  # of 2 bits, or with a group that is shorter
    kind = np.dtype(jnp.int4 if bits == 4 else jnp.int8)

    def signed(index: Index) -> np.ndarray:
        return (numbers(index).astype(np.int16) - middle).astype(kind)

    def points(index: Index) -> np.ndarray:
        assert zeros is not None
        return (zeros()[index] - middle).astype(np.int8)

    return Pieces(
        Made(shape, signed).as_tensor(kind),
        factors,
        None if zeros is None else Made((out, groups), points).as_tensor(np.dtype(np.int8)),
    )


def factors_of(
    scale: Tensor, shape: tuple[int, ...], take: Callable[[Index], np.ndarray]
) -> Tensor:
    """The factors ``take`` cuts out of ``scale``, in a type that is kept."""
    dtype = scale.dtype if scale.dtype in _KEPT else np.dtype(np.float32)
    return Made(shape, lambda index: take(index).astype(dtype)).as_tensor(dtype)
