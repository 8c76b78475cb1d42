"""Numbers of a few bits in words of 32, and the parts of axes that fall into a box."""

from __future__ import annotations

import numpy as np

FLOAT = np.dtype(np.float32)
Index = tuple[slice, ...]


def digits(words: np.ndarray, bits: int) -> np.ndarray:
    """[..] int32 or uint32 -> [.., 32 / bits], the numbers in each, the lowest bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    found: np.ndarray = (words.view(np.uint32)[..., None] >> shifts) & np.uint32(2**bits - 1)
    return found


def words_of(box: slice, each: int) -> slice:
    """The words, of ``each`` numbers, that hold those of a box."""
    return slice(box.start // each, -(-box.stop // each))


def within(box: slice, first: int) -> slice:
    """The box in what begins at ``first``."""
    return slice(box.start - first, box.stop - first, box.step)


def numbers(box: slice) -> np.ndarray:
    """The indices of a box."""
    return np.arange(box.start, box.stop, box.step)
