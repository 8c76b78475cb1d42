"""MXFP4: two numbers of 4 bits a byte, and an exponent for each 32 of them (gpt-oss).

    x_blocks   uint8 [E, out, in / 32, 16]; the low half of a byte is the number before the other
    x_scales   uint8 [E, out, in / 32], an exponent and 127

As x [E, in, out], which is how the same experts lie there in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from specjax.checkpoint.packed.digits import FLOAT, Index, within
from specjax.core.tensors import Made, Pieces, Tensor

_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_FLOAT4, _EXPONENT = np.dtype(jnp.float4_e2m1fn), np.dtype(jnp.float8_e8m0fnu)
_LARGEST = 252  # exponent and 127: times 6 that is still a number
_VALUES = np.concatenate([_VALUES, -_VALUES])  # by the four bits


def read(base: str, rest: dict[str, Tensor], said: Mapping[str, Any]) -> dict[str, Tensor]:
    del said
    blocks, scales = rest.pop(f"{base}_blocks"), rest.pop(f"{base}_scales")
    if len(blocks.shape) != 4 or blocks.shape[3] != 16 or blocks.shape[:3] != scales.shape:
        raise ValueError(
            f"{list(blocks.shape)} with scales {list(scales.shape)}: 16 bytes a scale are expected."
        )
    num, out, groups, _ = blocks.shape

    def make(index: Index) -> np.ndarray:
        experts, inside, outside = index
        first, last = inside.start // 32, -(-inside.stop // 32)
        box = (experts, outside, slice(first, last))
        pairs = blocks.read()[box]
        halves = np.stack([pairs & 15, pairs >> 4], axis=-1)  # [E, out, groups, 16, 2]
        exponent = scales.read()[box].astype(np.int32) - 127
        values = np.ldexp(_VALUES[halves], exponent[..., None, None])
        flat = values.reshape(*values.shape[:2], 32 * (last - first)).swapaxes(1, 2)
        found: np.ndarray = flat[:, within(inside, 32 * first)]
        return found

    def numbers(index: Index) -> np.ndarray:
        experts, inside, outside = index
        first, last = inside.start // 32, -(-inside.stop // 32)
        pairs = blocks.read()[experts, outside, first:last]
        halves = np.stack([pairs & 15, pairs >> 4], axis=-1).view(_FLOAT4)
        flat = halves.reshape(*halves.shape[:2], 32 * (last - first)).swapaxes(1, 2)
        return np.asarray(flat[:, within(inside, 32 * first)])

    def exponents(index: Index) -> np.ndarray:
        experts, inside, outside = index
        found: np.ndarray = scales.read()[experts, outside, inside].swapaxes(1, 2)
        if (found > _LARGEST).any():
            raise ValueError(f"{base}_scales make NaN or infinity; the weights are damaged.")
        return np.maximum(found, 1).view(_EXPONENT)  # 2^-127 is no normal number

    kept = Pieces(
        Made((num, groups * 32, out), numbers).as_tensor(_FLOAT4),
        Made((num, groups, out), exponents).as_tensor(_EXPONENT),
        axis=-2,
    )
    return {base: Made((num, groups * 32, out), make).as_tensor(FLOAT, kept)}
