"""Words of 4 or 8 bits as compressed-tensors packs them ("pack-quantized"; Kimi's experts).

    x.weight_packed       int32 [out, in / n], n numbers a word, the lowest bits first
    x.weight_scale        [out, groups], [out, 1] or of the tensor
    x.weight_shape        int [2]
    x.weight_zero_point   int32 [out / n, groups], packed along the rows; without it the middle
    x.weight_g_idx        int32 [in], the group of each column, where they are not neighbours

A value is (number - zero) * scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from specjax.checkpoint.packed.digits import FLOAT, Index, digits, numbers, within, words_of
from specjax.checkpoint.packed.pieces import factors_of, pieces_of
from specjax.checkpoint.packed.settings import bits_of
from specjax.core.tensors import Made, Tensor


def read(base: str, rest: dict[str, Tensor], said: Mapping[str, Any]) -> dict[str, Tensor]:
    packed, scale = rest.pop(f"{base}.weight_packed"), rest.pop(f"{base}.weight_scale")
    stored = rest.pop(f"{base}.weight_shape")
    zeros = rest.pop(f"{base}.weight_zero_point", None)
    order = rest.pop(f"{base}.weight_g_idx", None)
    if len(packed.shape) != 2 or packed.dtype != np.int32 or stored.shape != (2,):
        raise ValueError(f"{list(packed.shape)} of {packed.dtype} is not a packed matrix.")
    out, size = (int(n) for n in stored.values())
    bits = bits_of(said, size, packed.shape[1])
    each, groups = 32 // bits, scale.shape[1] if len(scale.shape) == 2 else 1
    if (
        packed.shape[0] != out
        or scale.shape not in ((), (1,), (1, 1), (out,), (out, groups))
        or size % groups
        or (zeros is not None and zeros.shape != (-(-out // each), groups))
        or (order is not None and order.shape != (size,))
    ):
        raise ValueError(
            f"{list(packed.shape)} with scales {list(scale.shape)} is not {[out, size]} in {bits} "
            "bits."
        )
    group = numbers(slice(0, size, 1)) // (size // groups)
    if order is not None and (order.values() >= 0).all():  # -1: it was never set
        group = order.values()
        if group.max(initial=0) >= groups:
            raise ValueError(f"g_idx names group {group.max()}, of {groups}.")

    def unsigned(index: Index) -> np.ndarray:
        rows, columns = index
        box = words_of(columns, each)
        words = packed.read()[rows, box]
        found = digits(words, bits).reshape(len(words), each * words.shape[1])
        return found[:, within(columns, box.start * each)]

    def factors() -> np.ndarray:
        return np.broadcast_to(scale.values().reshape(-1, groups), (out, groups))

    def middle() -> np.ndarray:
        assert zeros is not None
        found = np.moveaxis(digits(zeros.values(), bits), 2, 1).reshape(-1, groups)[:out]
        return found.astype(np.float32)

    def make(index: Index) -> np.ndarray:
        rows, columns = index
        found = unsigned(index).astype(np.float32)
        of = factors()[rows][:, group[columns]].astype(np.float32)
        if zeros is None:
            return (found - 2 ** (bits - 1)) * of
        return (found - middle()[rows][:, group[columns]]) * of

    kept = None
    if order is None or (group == numbers(slice(0, size, 1)) // (size // groups)).all():
        held = factors_of(scale, (out, groups), lambda index: factors()[index])
        kept = pieces_of((out, size), bits, unsigned, held, None if zeros is None else middle)
    return {f"{base}.weight": Made((out, size), make).as_tensor(FLOAT, kept)}
