"""Several texts a row: who shares which, and how full rows are.

Texts are put in an order drawn from the seed, and each goes into the first row that has room for
it (first fit), behind those that are there already. That is done once: an epoch is every row once,
in an order of its own, as where a row is a text, and so every text once. What lies in which row
follows from the seed and the lengths alone, whatever the number of processes, and a run resumes by
the same position.

Neither drafter nor target sees more than a text's own tokens (`objectives.base.Batch`), so that
whom it shares a row with changes nothing but which texts make a step.
"""

from __future__ import annotations

import heapq
import zlib

import numpy as np

from specjax.train.data.rows import Row, Rows


class Packed:
    """Rows of whole texts, in all at most ``seq_len`` tokens each."""

    def __init__(self, texts: Rows, seq_len: int, *, seed: int):
        """``texts`` longer than a row are cut, as they are where each has one of its own."""
        lengths = np.minimum(texts.lengths(), seq_len)
        order = np.random.default_rng(seed).permutation(len(lengths))
        rows = first_fit(lengths[order], seq_len)
        by_row = np.argsort(rows, kind="stable")
        bounds = np.searchsorted(rows[by_row], np.arange(1, rows.max(initial=-1) + 1))
        self._texts, self._seq_len = texts, seq_len
        self._members = np.split(order[by_row], bounds)

    def __len__(self) -> int:
        return len(self._members)

    def lengths(self) -> np.ndarray:
        lengths = np.minimum(self._texts.lengths(), self._seq_len)
        return np.array([lengths[members].sum() for members in self._members], np.int64)

    def row(self, index: int, rng: np.random.Generator) -> Row:
        texts = [self._texts.row(int(i), rng) for i in self._members[index]]
        tokens = [text.tokens[: self._seq_len] for text in texts]
        lengths = [len(text) for text in tokens]
        return Row(
            np.concatenate(tokens),
            np.concatenate([text.supervised[: self._seq_len] for text in texts]),
            np.repeat(np.cumsum([0, *lengths[:-1]]), lengths).astype(np.int32),
        )

    @property
    def digest(self) -> int:
        """A number that another packing hardly has."""
        return zlib.crc32(b"|".join(members.tobytes() for members in self._members))


def first_fit(lengths: np.ndarray, room: int) -> np.ndarray:
    """Puts one after the other into the first row that has room for it.

    Args:
      lengths: [N], from 1 to ``room``.
      room: of a row.

    Returns:
      [N] int64, the row of each, counted from 0.
    """
    none = len(lengths)  # no row has this number
    by_room: list[list[int]] = [[] for _ in range(room + 1)]  # rows by what they have left
    first = np.full(room + 1, none, np.int64)  # of each the lowest
    found, num = np.empty(len(lengths), np.int64), 0
    for i, size in enumerate(lengths.tolist()):
        left = size + int(first[size:].argmin())
        if first[left] == none:
            row, left, num = num, room, num + 1
        else:
            row = heapq.heappop(by_room[left])
            first[left] = by_room[left][0] if by_room[left] else none
        found[i], left = row, left - size
        heapq.heappush(by_room[left], row)
        first[left] = by_room[left][0]
    return found


def filling(texts: Rows, rows: Rows, seq_len: int, *, hint: bool) -> str:
    """A line on how much of the rows are tokens of texts.

    Args:
      texts: what is trained on.
      rows: the same packed, or as they are.
      seq_len: tokens of a row.
      hint: where they are not packed, say what that would change, if it is a tenth or more.
    """
    real = int(np.minimum(texts.lengths(), seq_len).sum())
    share = lambda num: f"{real / max(num * seq_len, 1):.1%}"
    said = f"{share(len(rows))} of the tokens of {len(rows):,} rows are real"
    if rows is not texts:
        return f"{said}, of {len(texts):,} texts"
    if not hint or real > 0.9 * len(rows) * seq_len:
        return said
    num = len(Packed(texts, seq_len, seed=0))
    return f"{said}; --config.data.pack=True would make {num:,} rows of them, {share(num)}"
