"""A row of training text, and random access to many of them."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Row:
    """Tokens of a text, or of several, and which of them may be labels. Not padded."""

    tokens: np.ndarray  # [N] int32
    supervised: np.ndarray  # [N] bool
    begin: np.ndarray | None = None  # [N] int32: where the text of each begins; None: it is one

    def padded(self, seq_len: int) -> dict[str, np.ndarray]:
        """The first ``seq_len`` tokens, as the fields of a `Batch` row."""
        num = min(len(self.tokens), seq_len)
        tokens, supervised = np.zeros(seq_len, np.int32), np.zeros(seq_len, bool)
        tokens[:num], supervised[:num] = self.tokens[:num], self.supervised[:num]
        row = {"tokens": tokens, "supervised": supervised, "length": np.array(num, np.int32)}
        if self.begin is not None:
            row["begin"] = np.full(seq_len, num, np.int32)
            row["begin"][:num] = self.begin[:num]
        return row


class Rows(Protocol):
    """Random access to rows."""

    def __len__(self) -> int: ...

    def lengths(self) -> np.ndarray:
        """[N] int64, the tokens of each row, which no visit changes."""
        ...

    def row(self, index: int, rng: np.random.Generator) -> Row:
        """Row ``index``; ``rng`` differs from visit to visit, for what may vary."""
        ...


class Windows:
    """Windows of a stream of text: window i begins anywhere in the i-th piece of its length."""

    def __init__(self, stream: np.ndarray, seq_len: int, *, where: str):
        """``stream`` [N] int32: texts one after the other.

        Raises:
          ValueError: if it is shorter than one window; ``where`` says what it is.
        """
        if len(stream) < seq_len:
            raise ValueError(
                f"{where}: {len(stream)} tokens of text are less than one window of "
                f"seq_len={seq_len}; give more text, or a smaller --config.data.seq_len."
            )
        self._stream, self._seq_len = stream, seq_len

    def __len__(self) -> int:
        return max(1, len(self._stream) // self._seq_len - 1)

    def lengths(self) -> np.ndarray:
        return np.full(len(self), self._seq_len, np.int64)

    def row(self, index: int, rng: np.random.Generator) -> Row:
        last = len(self._stream) - self._seq_len
        start = min(index * self._seq_len + int(rng.integers(self._seq_len)), last)
        tokens = self._stream[start : start + self._seq_len].astype(np.int32)
        return Row(tokens, np.ones(len(tokens), bool))


class Fixed:
    """Rows that are what they are."""

    def __init__(self, rows: Sequence[Row]):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def lengths(self) -> np.ndarray:
        return np.array([len(row.tokens) for row in self._rows], np.int64)

    def row(self, index: int, rng: np.random.Generator) -> Row:
        del rng
        return self._rows[index]


class Joined:
    """Several sources one after the other."""

    def __init__(self, parts: Sequence[Rows]):
        self._parts = parts
        self._ends = list(itertools.accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def lengths(self) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.int64), *(part.lengths() for part in self._parts)])

    def row(self, index: int, rng: np.random.Generator) -> Row:
        part = bisect.bisect_right(self._ends, index)
        begin = self._ends[part - 1] if part else 0
        return self._parts[part].row(index - begin, rng)


def heldout_rows(rows: Rows, num: int, *, seed: int = 0) -> list[Row]:
    """``num`` rows spread evenly over ``rows`` (fewer where there are fewer), always the same."""
    num = min(num, len(rows))
    places = (np.arange(num) * len(rows)) // max(num, 1)
    return [rows.row(int(i), np.random.default_rng((seed, int(i)))) for i in places]
