"""What is held out of files that have no held-out part of their own: always the same, spread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specjax.train.data.jsonl import Line, Lines

_PIECE = 8  # windows of a text that are held out in one piece
_SHOWN = 5


def split_text(
    document: np.ndarray, share: float, *, seq_len: int, separator: int | None, where: str
) -> tuple[list[np.ndarray], list[np.ndarray], str]:
    """A text's pieces to train on, those held out, and which they are.

    Args:
      document: [N] int32 tokens.
      share: of them to hold out, at least one window.
      seq_len: tokens of a window.
      separator: begins every document, and so every piece that is not its beginning.
      where: names the text in messages.

    Raises:
      ValueError: if it is too short to be split.
    """
    size = min(len(document) // 4, _PIECE * seq_len)
    if size < seq_len:
        raise ValueError(
            f"{where}: {len(document)} tokens are too few to hold some of them out (4 windows of "
            f"seq_len={seq_len}); name files that are not trained on in --config.data.heldout."
        )
    num = max(1, round(share * len(document) / size))
    num = min(num, len(document) // (2 * size))
    # Piece i lies in the middle of the i-th part of the text.
    middles = (np.arange(num) * 2 + 1) * len(document) // (2 * num)
    starts = [int(m) - size // 2 for m in middles]
    bounds = [0, *(b for s in starts for b in (s, s + size)), len(document)]
    begin = [] if separator is None else [separator]

    def piece(start: int, end: int) -> np.ndarray:
        first = document[:0] if start == 0 else np.array(begin, document.dtype)
        return np.concatenate([first, document[start:end]])

    kept = [piece(a, b) for a, b in zip(bounds[::2], bounds[1::2], strict=True) if b > a]
    held = [piece(s, s + size) for s in starts]
    said = ", ".join(f"{s:,} to {s + size - 1:,}" for s in starts[:_SHOWN])
    more = ", ..." if num > _SHOWN else ""
    whole = f"{where}: {num * size / len(document):.1%} of {len(document):,} tokens are held out"
    return kept, held, f"{whole}, in {num} piece{'s' * (num > 1)}: {said}{more}"


def split_lines(
    files: Sequence[tuple[str, Lines]], share: float
) -> tuple[list[list[Line]], list[list[Line]], list[str]]:
    """Splits each file's lines into those to train on and those held out, with their numbers.

    A line is chosen by the digest of its rows, so lines that say the same are on the same side, in
    whatever files they are.

    Raises:
      ValueError: if all lines say the same.
    """
    digests = [[line.digest for line in lines.lines] for _, lines in files]
    known = sorted({digest for file in digests for digest in file})
    if len(known) < 2:
        raise ValueError(
            f"Nothing is held out: {files[0][0]} has a single conversation; name files that are "
            "not trained on in --config.data.heldout."
        )
    chosen = set(known[: max(1, round(share * len(known)))])
    chosen = chosen if len(chosen) < len(known) else set(known[:-1])
    kept, held, notes = [], [], []
    for (name, lines), file in zip(files, digests, strict=True):
        sides = [digest in chosen for digest in file]
        pairs = list(zip(lines.lines, sides, strict=True))
        kept.append([line for line, out in pairs if not out])
        held.append([line for line, out in pairs if out])
        nums = [line.num for line in held[-1]]
        said = ", ".join(map(str, nums[:_SHOWN])) + (", ..." if len(nums) > _SHOWN else "")
        which = f", line{'s' * (len(nums) > 1)} {said}" if nums else ""
        notes.append(f"{name}: {len(nums)} of {len(file)} conversations are held out{which}")
    return kept, held, notes
