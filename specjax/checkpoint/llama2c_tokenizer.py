"""The tokenizer file of llama2.c: scored pieces, merged greedily (SentencePiece's BPE).

int32 longest piece; then for each id float32 score, int32 length, bytes. Ids 0, 1, 2 are unknown,
beginning and end; 3..258 are the bytes; the rest are pieces of text.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.tokenizer import digest
from specjax.core.files import is_there, read_bytes

BOS, EOS = 1, 2
_FIRST_BYTE, _FIRST_PIECE = 3, 259
_PIECE = struct.Struct("<fi")


class Llama2cTokenizer:
    """Greedy merging of the adjacent pair whose joined piece has the highest score.

    As in llama2.c a sequence begins with BOS and a space that decoding removes again. Without BOS
    the text continues one, and gets no space.
    """

    bos_id: int | None = BOS
    byte_tokens: Mapping[int, int] = {}

    def __init__(self, pieces: Sequence[bytes], scores: Sequence[float]):
        self._pieces, self._scores = list(pieces), list(scores)
        for byte in range(_FIRST_PIECE - _FIRST_BYTE):
            self._pieces[_FIRST_BYTE + byte] = bytes([byte])
        # Text matches pieces of text only: it cannot spell a special token or a byte.
        self._ids = {p: i for i, p in enumerate(self._pieces) if i >= _FIRST_PIECE}
        self.vocab_size = len(self._pieces)
        self.added = frozenset(range(_FIRST_BYTE))
        self.special_tokens: Mapping[str, int] = {
            piece.decode("utf-8", "replace").strip(): i
            for i, piece in enumerate(self._pieces[:_FIRST_BYTE])
        }

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        if add_bos and text:
            text = " " + text
        ids: list[int] = []
        for char in text:
            raw = char.encode("utf-8", "surrogatepass")
            piece = self._ids.get(raw)
            ids.extend([piece] if piece is not None else [_FIRST_BYTE + b for b in raw])
        ids = self._merge(ids)
        return [BOS, *ids] if add_bos else ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        out: list[bytes] = []
        for n, i in enumerate(ids):
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"Token {i} is not in the vocabulary, 0..{self.vocab_size - 1}.")
            piece = self._pieces[i]
            if i < _FIRST_BYTE:
                piece = b"" if skip_special_tokens else piece.strip()
            elif n and ids[n - 1] == BOS:
                piece = piece.removeprefix(b" ")
            out.append(piece)
        return b"".join(out).decode("utf-8", "replace")

    def tokens(self) -> dict[int, str]:
        return {
            i: piece.decode("utf-8", "backslashreplace") for i, piece in enumerate(self._pieces)
        }

    def fingerprint(self) -> str:
        return digest(enumerate(p.hex() for p in self._pieces), self._scores)

    def _merge(self, ids: list[int]) -> list[int]:
        """Best pair first, the leftmost of equals, over a linked list of what is left."""
        end = len(ids)
        following = list(range(1, end + 1))
        previous = list(range(-1, end - 1))
        heap: list[tuple[float, int, int, int, int]] = []

        def consider(left: int) -> None:
            if left < 0 or following[left] >= end:
                return
            a, b = ids[left], ids[following[left]]
            if a < _FIRST_PIECE or b < _FIRST_PIECE:
                return
            joined = self._ids.get(self._pieces[a] + self._pieces[b])
            if joined is not None:
                heapq.heappush(heap, (-self._scores[joined], left, a, b, joined))

        for left in range(end):
            consider(left)
        while heap:
            _, left, a, b, joined = heapq.heappop(heap)
            right = following[left]
            if ids[left] != a or right >= end or ids[right] != b:
                continue  # one of the two was merged meanwhile
            ids[left], ids[right] = joined, -1
            following[left] = following[right]
            if following[left] < end:
                previous[following[left]] = left
            consider(left)
            consider(previous[left])
        return [i for i in ids if i >= 0]


def find_llama2c_tokenizer(model: Path, vocab_size: int) -> Llama2cTokenizer | None:
    """The tokenizer beside a model file: ``tokN.bin`` for N tokens, else ``tokenizer.bin``.

    Raises:
      CheckpointError: as `load_llama2c_tokenizer` does.
    """
    for name in (f"tok{vocab_size}.bin", "tokenizer.bin"):
        if is_there(model.parent / name):
            return load_llama2c_tokenizer(model.parent / name, vocab_size)
    return None


def load_llama2c_tokenizer(path: Path, vocab_size: int) -> Llama2cTokenizer:
    """Reads a tokenizer file of exactly ``vocab_size`` pieces.

    Raises:
      CheckpointError: if it is truncated, has another number of pieces, or lacks the bytes.
    """
    data, position = read_bytes(path), 4
    pieces: list[bytes] = []
    scores: list[float] = []
    while position < len(data):
        if position + _PIECE.size > len(data):
            raise CheckpointError(f"{path}: truncated after piece {len(pieces)}.")
        score, length = _PIECE.unpack_from(data, position)
        position += _PIECE.size
        if not 0 <= length <= len(data) - position:
            raise CheckpointError(f"{path}: truncated or damaged at piece {len(pieces)}.")
        pieces.append(data[position : position + length])
        scores.append(score)
        position += length
    if len(pieces) != vocab_size:
        raise CheckpointError(
            f"{path}: holds {len(pieces)} pieces, but the model has a vocabulary of {vocab_size}."
        )
    if pieces[_FIRST_BYTE : _FIRST_BYTE + 1] != [b"<0x00>"] or len(pieces) < _FIRST_PIECE:
        raise CheckpointError(f"{path}: pieces 3..258 are not the bytes <0x00>..<0xFF>.")
    return Llama2cTokenizer(pieces, scores)
