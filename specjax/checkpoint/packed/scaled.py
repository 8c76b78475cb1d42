"""FP8 and int8: a number a byte, times a factor.

    x.weight             float8_e4m3fn, float8_e5m2 or int8
    x.weight_scale_inv   the factor of a block (DeepSeek-V3, Qwen's FP8); it multiplies, whatever
                         its name says
    x.weight_scale       of a block, a group of a row, a row or the tensor (compressed-tensors'
                         float-quantized, int-quantized; FP8 of others)
    x.weight_zero_point  is subtracted before, where int8 has one

The same with experts in front ([E, out, in]), and with names that do not end in ``weight``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from specjax.checkpoint.packed.digits import FLOAT, Index, numbers
from specjax.checkpoint.packed.pieces import factors_of
from specjax.checkpoint.packed.settings import blocks
from specjax.core.tensors import Made, Pieces, Tensor

FP8 = (np.dtype(jnp.float8_e4m3fn), np.dtype(jnp.float8_e5m2))
_TYPES = (*FP8, np.dtype(np.int8))


def read_inverse(base: str, rest: dict[str, Tensor], said: Mapping[str, Any]) -> dict[str, Tensor]:
    """``base``_scale_inv."""
    return _read(base, f"{base}_scale_inv", rest, said)


def read(base: str, rest: dict[str, Tensor], said: Mapping[str, Any]) -> dict[str, Tensor]:
    """``base``.weight_scale."""
    return _read(f"{base}.weight", f"{base}.weight_scale", rest, said)


def _read(
    name: str, scale_name: str, rest: dict[str, Tensor], said: Mapping[str, Any]
) -> dict[str, Tensor]:
    weight, scale = rest[name], rest.pop(scale_name)
    zero = rest.pop(f"{name}_zero_point", None)
    if weight.dtype not in _TYPES:
        raise ValueError(
            f"{name} is {weight.dtype}, not 8 bits, and has a scale all the same; it is not known "
            "whether it was multiplied."
        )
    sizes = _sizes(weight.shape, scale.shape, blocks(said))
    if zero is not None and zero.shape != scale.shape:
        raise ValueError(f"zero points {list(zero.shape)} for scales {list(scale.shape)}.")
    grid = tuple(-(-n // size) for n, size in zip(weight.shape, sizes))

    def make(index: Index) -> np.ndarray:
        box = np.ix_(*(numbers(part) // size for part, size in zip(index, sizes)))
        found: np.ndarray = weight.read()[index].astype(np.float32)
        if zero is not None:
            found = found - zero.values().astype(np.float32).reshape(grid)[box]
        return found * scale.values().astype(np.float32).reshape(grid)[box]

    *axes, width = weight.shape
    kept = None
    if width % grid[-1] == 0 and (grid[-1] == 1 or width // grid[-1] == sizes[-1]):
        shape = (*axes, grid[-1])  # each row's own, also where rows share them

        def rows(index: Index) -> tuple[np.ndarray, ...]:
            parts = [numbers(part) // size for part, size in zip(index, sizes)]
            return np.ix_(*parts[:-1], numbers(index[-1]))

        def points(index: Index) -> np.ndarray:
            assert zero is not None
            return zero.values().reshape(grid)[rows(index)].astype(np.int8)

        kept = Pieces(
            weight,
            factors_of(scale, shape, lambda index: scale.values().reshape(grid)[rows(index)]),
            None if zero is None else Made(shape, points).as_tensor(np.dtype(np.int8)),
        )
    return {name: Made(weight.shape, make).as_tensor(FLOAT, kept)}


def _sizes(
    shape: tuple[int, ...], scales: tuple[int, ...], block: tuple[int, int] | None
) -> tuple[int, ...]:
    """How many numbers share a factor, along each axis. Raises ValueError."""
    if scales in ((), (1,)):
        return shape
    if len(scales) == len(shape) - 1 and scales == shape[:-1]:
        scales = (*scales, 1)  # of rows
    axes = len(shape)
    if axes < 2 or len(scales) != axes or scales[:-2] != shape[:-2]:
        raise ValueError(f"{list(shape)} does not fit scales {list(scales)}.")
    inner, given = shape[-2:], scales[-2:]
    if block is not None and given == tuple(-(-n // b) for n, b in zip(inner, block)):
        return (*(1,) * (axes - 2), *block)
    # Without sizes that are said, only rows, groups of a row and whole matrices are unambiguous.
    if given[0] not in (1, inner[0]) or inner[1] % given[1] or (given[0] == 1 < given[1]):
        raise ValueError(
            f"{list(shape)} with scales {list(scales)} is not in the blocks that "
            f"quantization_config says (weight_block_size or block_structure): {block}."
        )
    return (*(1,) * (axes - 2), *(n // s for n, s in zip(inner, given)))
