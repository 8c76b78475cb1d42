"""GPTQ and AWQ: x.qweight, x.qzeros, x.scales, and x.g_idx; a value is (number - zero) * scale.

    gptq   qweight int32 [in / n, out], qzeros [groups, out / n], the lowest bits first
    awq    qweight int32 [in, out / 8], qzeros [groups, out / 8], the eight columns of a word in
           the order 0, 2, 4, 6, 1, 3, 5, 7 (its "gemm")

``scales`` are [groups, out] in both. GPTQ's first format stores zeros less 1; symmetric ones are
in the middle, whatever is stored. ``g_idx`` [in] is each input's group, where they are not
neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from specjax.checkpoint.packed.digits import FLOAT, Index, digits, numbers, within, words_of
from specjax.checkpoint.packed.pieces import factors_of, pieces_of
from specjax.core.tensors import Made, Tensor

_BITS = {"gptq": (2, 4, 8), "awq": (4,)}
_AWQ_PLACE = np.argsort((0, 2, 4, 6, 1, 3, 5, 7))  # where in a word each column lies


def read(base: str, rest: dict[str, Tensor], said: Mapping[str, Any]) -> dict[str, Tensor]:
    method = said.get("quant_method")
    if method not in _BITS:
        raise ValueError(f"quantization_config.quant_method={method!r} is not gptq or awq.")
    packed, scales, zeros = (rest.pop(f"{base}.{n}") for n in ("qweight", "scales", "qzeros"))
    order = rest.pop(f"{base}.g_idx", None)
    matrices = all(len(t.shape) == 2 for t in (packed, scales, zeros))
    if not matrices or not zeros.shape[1] or 0 in scales.shape:
        raise ValueError(f"{list(packed.shape)} with scales {list(scales.shape)} is no matrix.")
    groups, out = scales.shape
    bits, left = divmod(32 * zeros.shape[1], out)  # per layer, whatever the config says of all
    if left or bits not in _BITS[method]:
        raise ValueError(
            f"{method} in {said.get('bits', said.get('w_bit'))} bits, zeros {list(zeros.shape)} "
            f"for {out} rows, is not supported (supported: {', '.join(map(str, _BITS[method]))})."
        )
    by_input = method == "gptq"
    each = 32 // bits
    size = packed.shape[0] * (each if by_input else 1)
    wide = out if by_input else zeros.shape[1]
    if packed.shape[1] != wide or zeros.shape[0] != groups or groups > size:
        raise ValueError(
            f"{list(packed.shape)} does not fit scales {list(scales.shape)} and zeros "
            f"{list(zeros.shape)}."
        )
    group = numbers(slice(0, size, 1)) // _group_size(size, groups, said)
    if by_input and order is not None:
        group = order.values()
        if group.shape != (size,) or group.min() < 0 or group.max() >= groups:
            raise ValueError(f"g_idx does not give each of {size} inputs one of {groups} groups.")
    take = _gptq_numbers if by_input else _awq_numbers
    zero = _gptq_zeros(zeros, bits, said) if by_input else lambda: _awq_columns(zeros.values())

    def make(index: Index) -> np.ndarray:
        rows, columns = index  # out, in
        of = group[columns]
        factors = scales.values().astype(np.float32)[of][:, rows]
        found: np.ndarray = ((take(packed, bits, rows, columns) - zero()[of][:, rows]) * factors).T
        return found

    kept = None
    if size % groups == 0 and (group == numbers(slice(0, size, 1)) // (size // groups)).all():
        middle = by_input and said.get("sym") is True
        kept = pieces_of(
            (out, size),
            bits,
            lambda index: take(packed, bits, *index).T,
            factors_of(scales, (out, groups), lambda index: scales.values().T[index]),
            None if middle else lambda: zero().T,
        )
    return {f"{base}.weight": Made((out, size), make).as_tensor(FLOAT, kept)}


def _group_size(size: int, groups: int, said: Mapping[str, Any]) -> int:
    """Inputs a group: equal ones, or those that the config says where the last is shorter."""
    if size % groups == 0:
        return size // groups
    width = said.get("group_size", said.get("q_group_size"))
    if type(width) is not int or width < 1 or -(-size // width) != groups:
        raise ValueError(
            f"{size} inputs do not fall into {groups} groups of quantization_config.group_size="
            f"{width!r}."
        )
    return width


def _gptq_numbers(packed: Tensor, bits: int, rows: slice, columns: slice) -> np.ndarray:
    """Of a box [out, in], as [in, out]."""
    each = 32 // bits
    words = words_of(columns, each)
    box = packed.read()[words, rows]
    found = np.moveaxis(digits(box, bits), 2, 1).reshape(each * len(box), box.shape[1])
    return found[within(columns, words.start * each)].astype(np.float32)


def _gptq_zeros(zeros: Tensor, bits: int, said: Mapping[str, Any]) -> Callable[[], np.ndarray]:
    """[groups, out]"""
    form = said.get("checkpoint_format", said.get("format"))

    def make() -> np.ndarray:
        found = digits(zeros.values(), bits).reshape(zeros.shape[0], -1).astype(np.int64)
        if said.get("sym") is True:
            return np.full_like(found, 2 ** (bits - 1), np.float32)
        return (found if form == "gptq_v2" else (found + 1) % 2**bits).astype(np.float32)

    return make


def _awq_numbers(packed: Tensor, bits: int, rows: slice, columns: slice) -> np.ndarray:
    """Of a box [out, in], as [in, out]."""
    del bits
    words = words_of(rows, 8)
    found = _awq_columns(packed.read()[columns, words])
    return found[:, within(rows, words.start * 8)]


def _awq_columns(words: np.ndarray) -> np.ndarray:
    """[a, b] words -> [a, 8 b] numbers."""
    found = digits(words, 4)[..., _AWQ_PLACE].reshape(len(words), 8 * words.shape[1])
    return found.astype(np.float32)
