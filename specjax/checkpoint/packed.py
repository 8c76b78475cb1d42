"""Tensors that a checkpoint holds in 4 or 8 bits, as plain numbers: unpacked as they are read.

Whether a tensor is packed, its own name and type say, not the lists of a config, which are often
wrong. Formats, and what belongs to ``x.weight``:

    fp8          x.weight e4m3, x.weight_scale_inv: a factor a block (DeepSeek-V3, Qwen3 FP8)
    mxfp4        x_blocks, x_scales: two numbers of 4 bits a byte, an exponent each 32 (gpt-oss)
    int4, int8   x.weight_packed, x.weight_scale, x.weight_shape (compressed-tensors)
    gptq, awq    x.qweight, x.qzeros, x.scales

A box of a tensor is unpacked from the bytes of that box alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from specjax.checkpoint.errors import CheckpointError, some
from specjax.core.tensors import Made, Tensor

_FLOAT = np.dtype(np.float32)
_FP8 = (np.dtype(jnp.float8_e4m3fn), np.dtype(jnp.float8_e5m2))
_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_FP4 = np.concatenate([_FP4, -_FP4])  # by its four bits
Index = tuple[slice, ...]
METHODS = ("fp8", "mxfp4", "compressed-tensors", "gptq", "awq")  # as configs call them


def unpacked(
    tensors: Mapping[str, Tensor], raw: Mapping[str, Any], where: str
) -> dict[str, Tensor]:
    """The tensors with those that are packed in the place of what they are packed from.

    Args:
      tensors: of a checkpoint.
      raw: its config, whose ``quantization_config`` says the sizes of blocks and groups.
      where: for messages.

    Raises:
      CheckpointError: on a method that is not known, and on a packed tensor without its scales.
    """
    said = raw.get("quantization_config") or {}
    if said and said.get("quant_method") not in METHODS:
        raise CheckpointError(
            f"{where}: quantization_config.quant_method={said.get('quant_method')!r} is not "
            f"supported (supported: {', '.join(METHODS)}); use full weights."
        )
    rest, made = dict(tensors), dict[str, Tensor]()
    for name in tensors:
        for ending, read in _FORMATS.items():
            if name.endswith(ending) and name in rest:
                base = name.removesuffix(ending)
                try:
                    made |= read(base, rest, said)
                except KeyError as error:
                    raise CheckpointError(
                        f"{where}: {name} is packed, but {error.args[0]} is missing; fetch the "
                        "checkpoint again."
                    ) from None
                except ValueError as error:
                    raise CheckpointError(f"{where}: {name}: {error}") from None
    odd = [name for name, tensor in rest.items() if tensor.dtype in _FP8]
    if odd:
        raise CheckpointError(
            f"{where}: {len(odd)} tensors in 8 bits without a scale: {some(odd)}; fetch the "
            "checkpoint again."
        )
    return {**rest, **made}


def _fp8(base: str, rest: dict[str, Tensor], said: Mapping[str, Any]) -> dict[str, Tensor]:
    """Blocks of ``weight_block_size``; the scale multiplies, whatever its name says."""
    name, scale = f"{base}.weight", rest.pop(f"{base}.weight_scale_inv")
    weight = rest.pop(name)
    block: Any = said.get("weight_block_size")
    if not _sizes(block, 2):
        raise ValueError(
            f"quantization_config.weight_block_size={block!r} is not two sizes, such as [128, 128]."
        )
    fits = tuple(-(-n // b) for n, b in zip(weight.shape, block))
    if len(weight.shape) != 2 or scale.shape != fits:
        raise ValueError(
            f"{list(weight.shape)} in blocks of {list(block)} has {list(fits)} scales, not "
            f"{list(scale.shape)}."
        )

    def make(index: Index) -> np.ndarray:
        values = weight.read()[index].astype(np.float32)
        rows, columns = (np.arange(s.start, s.stop, s.step) // b for s, b in zip(index, block))
        factors = scale.values().astype(np.float32)
        found: np.ndarray = values * factors[rows[:, None], columns[None, :]]
        return found

    return {name: Made(weight.shape, make).as_tensor(_FLOAT)}


def _mxfp4(base: str, rest: dict[str, Tensor], said: Mapping[str, Any]) -> dict[str, Tensor]:
    """Bytes [E, out, in / 32, 16], exponents [E, out, in / 32]; as [E, in, out], like plain ones.

    The low half of a byte is the number before that of the high half.
    """
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
        values = np.ldexp(_FP4[halves], exponent[..., None, None])
        flat = values.reshape(*values.shape[:2], 32 * (last - first)).swapaxes(1, 2)
        found: np.ndarray = flat[:, _within(inside, 32 * first)]
        return found

    return {base: Made((num, groups * 32, out), make).as_tensor(_FLOAT)}


def _compressed(base: str, rest: dict[str, Tensor], said: Mapping[str, Any]) -> dict[str, Tensor]:
    """[out, in / n] words of n numbers, the lowest bits first; (number - 2^(bits - 1)) * scale."""
    packed, scale = rest.pop(f"{base}.weight_packed"), rest.pop(f"{base}.weight_scale")
    shape = tuple(int(n) for n in rest.pop(f"{base}.weight_shape").values())
    zeros = rest.pop(f"{base}.weight_zero_point", None)
    if zeros is not None or rest.pop(f"{base}.weight_g_idx", None) is not None:
        raise ValueError(
            "zero points and reordered groups of compressed-tensors are not supported."
        )
    if len(shape) != 2 or packed.dtype != np.int32:
        raise ValueError(f"{list(packed.shape)} of {packed.dtype} is not a packed matrix.")
    out, size = shape
    bits = _bits(said)
    each = 32 // bits
    if packed.shape != (out, -(-size // each)) or scale.shape[0] != out or size % scale.shape[1]:
        raise ValueError(
            f"{list(packed.shape)} with scales {list(scale.shape)} is not {list(shape)} in {bits} "
            "bits."
        )
    group = size // scale.shape[1]

    def make(index: Index) -> np.ndarray:
        rows, columns = index
        first, last = columns.start // each, -(-columns.stop // each)
        words = packed.read()[rows, slice(first, last)].view(np.uint32)
        numbers = _digits(words, bits).reshape(len(words), -1)[:, _within(columns, first * each)]
        factors = scale.read()[rows, slice(None)].astype(np.float32)
        at = np.arange(columns.start, columns.stop, columns.step) // group
        found: np.ndarray = (numbers.astype(np.float32) - 2 ** (bits - 1)) * factors[:, at]
        return found

    return {f"{base}.weight": Made(shape, make).as_tensor(_FLOAT)}


def _bits(said: Mapping[str, Any]) -> int:
    """Of a number, as the groups of a compressed-tensors config say; all the same."""
    groups = (said.get("config_groups") or {}).values()
    found = {(g.get("weights") or {}).get("num_bits") for g in groups if isinstance(g, Mapping)}
    if found not in ({4}, {8}):
        raise ValueError(
            f"quantization_config.config_groups say num_bits={sorted(map(str, found))}, which is "
            "not supported: 4 or 8, the same in all groups."
        )
    (bits,) = found
    return int(bits)  # type: ignore[arg-type]


def _gptq_or_awq(base: str, rest: dict[str, Tensor], said: Mapping[str, Any]) -> dict[str, Tensor]:
    method = said.get("quant_method")
    if method not in ("gptq", "awq"):
        raise ValueError(f"quantization_config.quant_method={method!r} is not gptq or awq.")
    bits = said.get("bits", said.get("w_bit"))
    if bits not in ((4, 8) if method == "gptq" else (4,)):
        raise ValueError(f"{method} in {bits!r} bits is not supported.")
    packed, scales = rest.pop(f"{base}.qweight"), rest.pop(f"{base}.scales")
    zeros, order = rest.pop(f"{base}.qzeros", None), rest.pop(f"{base}.g_idx", None)
    read = _gptq if method == "gptq" else _awq
    return {f"{base}.weight": read(packed, scales, zeros, order, int(bits), said)}


def _gptq(
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    order: Tensor | None,
    bits: int,
    said: Mapping[str, Any],
) -> Tensor:
    """qweight [in / n, out], scales [groups, out]; (number - zero) * scale.

    The first version of the format stores zeros less 1. Symmetric ones are in the middle, whatever
    is stored. ``order`` is each input's group, where groups are not neighbours.
    """
    each, (words, out) = 32 // bits, packed.shape
    size, groups = words * each, scales.shape[0]
    if zeros is None or zeros.shape != (groups, out // each) or scales.shape != (groups, out):
        raise ValueError(f"{list(packed.shape)} does not fit its scales and zeros.")
    group = order.values() if order is not None else np.arange(size) // -(-size // groups)
    later = said.get("checkpoint_format") == "gptq_v2"

    def zero_points() -> np.ndarray:
        if said.get("sym") is True:
            return np.full((groups, out), 2 ** (bits - 1), np.float32)
        found = _digits(zeros.values().view(np.uint32), bits).reshape(groups, -1).astype(np.int64)
        return (found if later else (found + 1) % 2**bits).astype(np.float32)

    def make(index: Index) -> np.ndarray:
        rows, columns = index  # out, in
        first, last = columns.start // each, -(-columns.stop // each)
        box = packed.read()[slice(first, last), rows].view(np.uint32)
        numbers = np.moveaxis(_digits(box, bits), 2, 1).reshape(-1, box.shape[1])
        numbers = numbers[_within(columns, first * each)].astype(np.float32)
        of = group[columns]
        factors = scales.values().astype(np.float32)[of][:, rows]
        found: np.ndarray = ((numbers - zero_points()[of][:, rows]) * factors).T
        return found

    return Made((out, size), make).as_tensor(_FLOAT)


# The columns of a word's four bits, the lowest first.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _awq(
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    order: Tensor | None,
    bits: int,
    said: Mapping[str, Any],
) -> Tensor:
    """qweight [in, out / 8], scales [groups, out], qzeros [groups, out / 8].

    A value is (number - zero) * scale.
    """
    del order, said
    (size, words), groups = packed.shape, scales.shape[0]
    out = 8 * words
    if zeros is None or zeros.shape != (groups, words) or scales.shape != (groups, out):
        raise ValueError(f"{list(packed.shape)} does not fit its scales and zeros.")
    group, place = -(-size // groups), np.argsort(_AWQ_ORDER)

    def columns_of(words: np.ndarray) -> np.ndarray:
        digits = _digits(words.view(np.uint32), bits)[..., place]
        return digits.reshape(len(words), -1).astype(np.float32)

    def make(index: Index) -> np.ndarray:
        rows, columns = index  # out, in
        first, last = rows.start // 8, -(-rows.stop // 8)
        numbers = columns_of(packed.read()[columns, slice(first, last)])
        of = np.arange(columns.start, columns.stop, columns.step) // group
        shift, factors = columns_of(zeros.values()), scales.values().astype(np.float32)
        box = slice(first * 8, last * 8)
        values = (numbers - shift[of][:, box]) * factors[of][:, box]
        found: np.ndarray = values[:, _within(rows, first * 8)].T
        return found

    return Made((out, size), make).as_tensor(_FLOAT)


def _digits(words: np.ndarray, bits: int) -> np.ndarray:
    """[..] uint32 -> its numbers of so many bits, the lowest first: [.., 32 / bits]."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    found: np.ndarray = (words[..., None] >> shifts) & np.uint32(2**bits - 1)
    return found


def _within(box: slice, first: int) -> slice:
    """The part of a box that begins at ``first``."""
    return slice(box.start - first, box.stop - first, box.step)


def _sizes(value: Any, count: int) -> bool:
    whole = isinstance(value, list) and len(value) == count
    return whole and all(type(n) is int and n > 0 for n in value) and math.prod(value) > 0


_Read = Callable[[str, dict[str, Tensor], Mapping[str, Any]], dict[str, Tensor]]
_FORMATS: dict[str, _Read] = {
    ".weight_scale_inv": _fp8,
    "_blocks": _mxfp4,
    ".weight_packed": _compressed,
    ".qweight": _gptq_or_awq,
}
