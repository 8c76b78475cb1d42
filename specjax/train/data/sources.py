"""The files that a run names, as rows to train on and prompts to be measured on."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from specjax.core.files import read_bytes
from specjax.train.data.holdout import split_lines, split_text
from specjax.train.data.jsonl import Line, Lines
from specjax.train.data.rows import Fixed, Joined, Row, Rows, Windows, heldout_rows
from specjax.train.data.text import Speech, read_texts

# Reads the rows of one .jsonl file.
ReadJsonl = Callable[[Path], Lines]
# The tokens of documents; told to whom what a user should know is said.
Encode = Callable[[Sequence[str], Callable[[str], None]], list[np.ndarray]]


class Sources:
    """Training rows, held-out rows and held-out prompts of one run.

    Attributes:
      train: rows of at most ``seq_len`` tokens.
      heldout: the same, of texts that are not trained on.
      num_tokens: of the plain text to train on.
      notes: what a user should know of them, a line each.
    """

    train: Rows
    heldout: Rows
    num_tokens: int
    notes: list[str]

    def __init__(
        self,
        train: Sequence[str],
        heldout: Sequence[str],
        *,
        seq_len: int,
        speech: Speech,
        read_jsonl: ReadJsonl,
        allow_mismatch: bool = False,
        heldout_share: float = 0.05,
        encode: Encode | None = None,
    ):
        """Reads everything.

        Where ``heldout`` names no file, a manifest's own held-out texts are held out, and of any
        other file ``heldout_share``. ``encode`` tokenises plain text; None: `Speech.document` does.

        Raises:
          ValueError: on a file that is missing or holds no training data, and on text shorter than
            a window, or too short to hold some of it out.
        """
        self._documents: list[np.ndarray] = []  # held out, plain text
        self._dialogues: list[Rows] = []  # held out, from .jsonl
        self._speech, self._seq_len, self._tokenise = speech, seq_len, encode
        self._allow_mismatch = allow_mismatch
        self._names = sorted({*train, *heldout})
        self.num_tokens, self.notes = 0, []
        files: list[tuple[str, Lines]] = []
        parts: list[Rows] = []
        for name in train:
            if Path(name).suffix == ".jsonl":
                files.append((name, self._lines(name, read_jsonl)))
            else:
                parts.append(self._text(name, None if heldout else heldout_share))
        if files and not heldout:
            kept, held, notes = split_lines(files, heldout_share)
            parts += [_rows(lines) for lines in kept if lines]
            self._dialogues += [_rows(lines) for lines in held if lines]
            self.notes += notes
        else:
            parts += [lines for _, lines in files]
        for name in heldout:
            if name in train and Path(name).suffix != ".json":
                self.notes.append(f"{name} is both trained on and held out")
            if Path(name).suffix == ".jsonl":
                self._dialogues.append(self._lines(name, read_jsonl))
                continue
            texts, own = read_texts(name, allow_mismatch=allow_mismatch)
            self._documents += self._encode(own or texts)
        self.train = Joined(parts)
        held_rows = list(self._dialogues)
        if self._documents:
            whole = np.concatenate(self._documents)
            held_rows.append(Windows(whole, seq_len, where="the held-out text"))
        self.heldout = Joined(held_rows)

    def _lines(self, name: str, read_jsonl: ReadJsonl) -> Lines:
        lines = read_jsonl(Path(name).expanduser())
        self.notes += lines.notes
        return lines

    def _text(self, name: str, share: float | None) -> Rows:
        """What is trained on of one text or manifest; ``share`` of a text is held out."""
        texts, own = read_texts(name, allow_mismatch=self._allow_mismatch)
        documents = self._encode(texts)
        if share is not None and own:
            self._documents += self._encode(own)
        elif share is not None:
            documents, held, note = split_text(
                np.concatenate(documents),
                share,
                seq_len=self._seq_len,
                separator=self._speech.separator,
                where=name,
            )
            self._documents += held
            self.notes.append(note)
        stream = np.concatenate(documents)
        self.num_tokens += len(stream)
        return Windows(stream, self._seq_len, where=name)

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self._tokenise is None:
            return [self._speech.document(text) for text in texts]
        return self._tokenise(texts, self.notes.append)

    def contents(self) -> dict[str, int]:
        """The CRC-32 of every file that was named: a run goes on with the same data alone."""
        return {name: zlib.crc32(read_bytes(Path(name).expanduser())) for name in self._names}

    def digest(self) -> list[int]:
        """Numbers that another text hardly has: how many rows, and the sums of a few of them."""
        numbers = []
        for rows in (self.train, self.heldout):
            some = heldout_rows(rows, 16)
            numbers += [len(rows), *(zlib.crc32(row.tokens.tobytes()) for row in some)]
        return numbers

    def prompts(self, num: int, num_tokens: int) -> list[list[int]]:
        """``num`` held-out prompts: the beginnings of dialogues, and pieces of ``num_tokens``.

        Raises:
          ValueError: if there are not that many.
        """
        rng = np.random.default_rng(0)
        dialogues = [d.row(i, rng) for d in self._dialogues for i in range(min(len(d), num))]
        found = [_before_response(row) for row in dialogues][:num]
        usable = [d for d in self._documents if len(d) > 2 * num_tokens]
        spread = np.random.default_rng(1)
        while usable and len(found) < num:
            document = usable[len(found) % len(usable)]
            start = int(spread.integers(len(document) - 2 * num_tokens + 1))
            found.append(document[start : start + num_tokens].tolist())
        if len(found) < num:
            raise ValueError(
                f"The held-out texts yield {len(found)} prompts of --config.eval.prompts={num}; "
                "lower it, or hold out more (--config.data.heldout_share; texts twice as "
                "long as eval.prompt_tokens)."
            )
        return found


def _rows(lines: Sequence[Line]) -> Rows:
    return Fixed([row for line in lines for row in line.rows])


def _before_response(row: Row) -> list[int]:
    """The tokens before the first that is supervised, at least one."""
    return row.tokens[: max(int(row.supervised.argmax()), 1)].tolist()
