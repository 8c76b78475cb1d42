"""A tensor of a checkpoint, before it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np

Index = tuple[slice, ...]


class Readable(Protocol):
    """What gives the values of a tensor, a part at a time: a NumPy array, or what makes one.

    One whose values lie in files may have ``read_into(index, out)``, which writes a box to an array
    and says whether it could (`fill`).
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: Index) -> np.ndarray:
        """The values of a box, one slice an axis; axes behind the last slice are whole."""
        ...


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor on disk: what it is, and how to get at its values."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], Readable]  # a read-only view of the file, or what makes the values
    pieces: Pieces | None = None  # what a packed one may be kept as; None: it is plain

    def values(self) -> np.ndarray:
        """All of it."""
        return np.asarray(self.read()[()])


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The arrays of a `core.quantised.Quantised`, each of the same axes as the tensor.

    Along ``axis`` neighbours share a factor.
    """

    values: Tensor
    factors: Tensor
    zeros: Tensor | None = None
    axis: int = -1


def fill(view: Readable, index: Index, out: np.ndarray) -> None:
    """Writes a box of ``view`` to ``out``; from files without a stop on the way, where it can."""
    into = getattr(view, "read_into", None)
    if into is None or not into(index, out):
        out[...] = view[index]


@dataclasses.dataclass(frozen=True)
class Made:
    """Values that are made box by box, when they are asked for."""

    shape: tuple[int, ...]
    make: Callable[[Index], np.ndarray]  # from one slice an axis: start, stop, step
    put: Callable[[Index, np.ndarray], bool] | None = None  # the same, as ``read_into``

    def __getitem__(self, index: Index) -> np.ndarray:
        return self.make(self._whole(index))

    def read_into(self, index: Index, out: np.ndarray) -> bool:
        return self.put is not None and self.put(self._whole(index), out)

    def _whole(self, index: Index) -> Index:
        rest = (slice(None),) * (len(self.shape) - len(index))
        bounds = (s.indices(n) for s, n in zip((*index, *rest), self.shape, strict=True))
        return tuple(slice(*b) for b in bounds)

    def as_tensor(self, dtype: np.dtype, pieces: Pieces | None = None) -> Tensor:
        return Tensor(self.shape, dtype, lambda: self, pieces)
