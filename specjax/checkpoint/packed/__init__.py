"""Tensors that a checkpoint holds in a few bits, as plain numbers: unpacked as they are read.

Whether a tensor is packed, its own name and type say, not the lists of a config, which are often
wrong: of an FP8 checkpoint some layers may be bfloat16. A format is a file here. A box of a tensor
is unpacked from the bytes of that box alone.

Only weights are read in this way. Scales of activations and of caches, which some checkpoints have
besides, are left out: a pass computes with activations in full.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from specjax.checkpoint.errors import CheckpointError, some
from specjax.checkpoint.packed import compressed, gptq, mxfp4, scaled
from specjax.checkpoint.packed.settings import METHODS, settings
from specjax.core.tensors import Tensor

__all__ = ["METHODS", "unpacked"]

_Read = Callable[[str, dict[str, Tensor], Mapping[str, Any]], dict[str, Tensor]]
# By how a tensor's name ends. Those that are packed into words come first: they have scales, too.
_FORMATS: dict[str, _Read] = {
    ".weight_packed": compressed.read,
    ".qweight": gptq.read,
    "_blocks": mxfp4.read,
    "_scale_inv": scaled.read_inverse,
    ".weight_scale": scaled.read,
}
_FACTORS, _WORDS = ("float32", "bfloat16", "float16", "float64"), ("int32", "uint32")
# What the pieces are stored as, by how their names end.
_PIECES: dict[str, tuple[str, ...]] = {
    ".weight_packed": _WORDS,
    ".weight_shape": ("int64", *_WORDS),
    ".weight_scale": _FACTORS,
    "_scale_inv": _FACTORS,
    ".qweight": _WORDS,
    ".qzeros": _WORDS,
    ".scales": _FACTORS,
    ".g_idx": ("int64", *_WORDS),
    "_blocks": ("uint8",),
    "_scales": ("uint8",),
}
_ACTIVATIONS = re.compile(r".*[._](input|output|q|k|v|activation)_(scale|zero_point)(_inv)?")


def unpacked(
    tensors: Mapping[str, Tensor], raw: Mapping[str, Any], where: str
) -> dict[str, Tensor]:
    """The tensors with those that are packed in the place of what they are packed from.

    Args:
      tensors: of a checkpoint.
      raw: its config, whose ``quantization_config`` says the sizes of blocks.
      where: for messages.

    Raises:
      CheckpointError: on a method or format that is not read, on packed tensors without their
        scales, and on sizes that do not fit together.
    """
    try:
        said = settings(raw)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from None
    rest = {n: t for n, t in tensors.items() if not (said and _ACTIVATIONS.fullmatch(n))}
    made: dict[str, Tensor] = {}
    for ending, read in _FORMATS.items():
        for name in [name for name in rest if name.endswith(ending)]:
            try:
                base = name.removesuffix(ending)
                _check_types(base, rest)
                found = read(base, rest, said)
            except KeyError as error:
                raise CheckpointError(
                    f"{where}: {name} is packed, but {error.args[0]} is missing; fetch the "
                    "checkpoint again."
                ) from None
            except ValueError as error:
                raise CheckpointError(f"{where}: {name}: {error}") from None
            for plain in found:
                rest.pop(plain, None)
            made |= found
    odd = [name for name, tensor in rest.items() if tensor.dtype in scaled.FP8]
    if odd:
        raise CheckpointError(
            f"{where}: {len(odd)} tensors in 8 bits without a scale: {some(odd)}; fetch the "
            "checkpoint again."
        )
    return {**rest, **made}


def _check_types(base: str, rest: Mapping[str, Tensor]) -> None:
    """Raises ValueError if a piece of what is packed holds numbers of another kind."""
    for ending, kinds in _PIECES.items():
        piece = rest.get(base + ending)
        if piece is not None and piece.dtype.name not in kinds:
            raise ValueError(f"{base}{ending} is {piece.dtype}, not {' or '.join(kinds)}.")
