"""Tensors read side by side: piece by piece, each into its place in memory.

A disk serves several readers faster than one, and NumPy's copies and checks run beside one another,
too. What is read next is read while what came before goes to its devices.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from specjax.core.tensors import Index, Readable, fill

THREADS = min(max(2 * (os.cpu_count() or 1), 4), 16)
_PIECE = 4 << 20  # bytes, about: so much is checked while the processor still has it
_AHEAD = 1 << 30  # bytes that are read before what comes before them is placed
_ALIGNED = 64  # bytes: memory that begins so JAX takes on a CPU as it is, without a copy

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Box:
    """A part of a tensor that is being read."""

    array: np.ndarray
    pieces: list[concurrent.futures.Future[None]]

    def wait(self) -> np.ndarray:
        """The values. Raises what reading one of its pieces raised."""
        for piece in self.pieces:
            piece.result()
        return self.array


class Reader:
    """Threads that read. To be closed; what has not begun then is dropped."""

    def __init__(self) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(THREADS, "specjax-read")

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def begin(
        self,
        view: Readable,
        index: Index,
        dtype: np.dtype,
        check: Callable[[np.ndarray], None] = lambda part: None,
    ) -> Box:
        """Begins to read the box ``index`` of ``view``, as ``dtype``.

        ``check`` raises on a part that holds what it may not.
        """
        bounds = [s.indices(n) for s, n in zip(index, view.shape)]
        bounds += [(0, n, 1) for n in view.shape[len(bounds) :]]
        shape = tuple(len(range(*b)) for b in bounds)
        array = aligned(shape, dtype)

        def piece(start: int, stop: int) -> None:
            first, _, step = bounds[0]
            lines = slice(first + start * step, first + stop * step, step)
            rest = [slice(*b) for b in bounds[1:]]
            fill(view, (lines, *rest), array[start:stop])
            check(array[start:stop])

        def scalar() -> None:
            array[...] = view[()]
            check(array.reshape(1))

        if not shape:
            return Box(array, [self._pool.submit(scalar)])
        line = max(math.prod(shape[1:]) * array.itemsize, 1)
        size = max(_PIECE // line, 1)
        starts = range(0, shape[0], size)
        submit = lambda at: self._pool.submit(piece, at, min(at + size, shape[0]))
        return Box(array, [submit(at) for at in starts])


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of any values that begins at a multiple of 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNED, np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    return memory[start : start + size].view(dtype).reshape(shape)


def in_order(begun: Iterable[tuple[int, Callable[[], T]]]) -> Iterator[T]:
    """Ends one after the other what ``begun`` begins, each (bytes, what ends it).

    No more is begun than a gibibyte ahead, or one.
    """
    waiting: deque[tuple[int, Callable[[], Any]]] = deque()
    held = 0
    for size, end in begun:
        waiting.append((size, end))
        held += size
        while held > _AHEAD and waiting:
            size, end = waiting.popleft()
            yield end()
            held -= size
    for _, end in waiting:
        yield end()
