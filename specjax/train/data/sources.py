"""The files that a run names, as rows to train on and prompts to be measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from specjax.train.data.rows import Joined, Row, Rows, Windows
from specjax.train.data.text import Speech, encode, read_texts

# Reads the rows of one .jsonl file.
ReadJsonl = Callable[[Path], Rows]


class Sources:
    """Training rows, held-out rows and held-out prompts of one run.

    Attributes:
      train: rows of at most ``seq_len`` tokens.
      heldout: the same, of texts that are not trained on.
      num_tokens: of the plain text to train on.
    """

    train: Rows
    heldout: Rows
    num_tokens: int

    def __init__(
        self,
        train: Sequence[str],
        heldout: Sequence[str],
        *,
        seq_len: int,
        speech: Speech,
        read_jsonl: ReadJsonl,
        allow_mismatch: bool = False,
        cache: Path | None = None,
    ):
        """Reads everything.

        Raises:
          ValueError: on a file that is missing or holds no training data, on text shorter than a
            window, and where nothing is held out.
        """
        self._documents: list[np.ndarray] = []  # held out, plain text
        self._dialogues: list[Rows] = []  # held out, from .jsonl
        self.num_tokens = 0
        parts: list[Rows] = []
        for name in train:
            if Path(name).suffix == ".jsonl":
                parts.append(read_jsonl(Path(name).expanduser()))
                continue
            texts, kept = read_texts(name, allow_mismatch=allow_mismatch)
            stream = np.concatenate(encode(speech, texts, cache=cache))
            self.num_tokens += len(stream)
            parts.append(Windows(stream, seq_len, where=name))
            if not heldout:
                self._documents += encode(speech, kept, cache=cache)
        for name in heldout:
            if Path(name).suffix == ".jsonl":
                self._dialogues.append(read_jsonl(Path(name).expanduser()))
                continue
            texts, kept = read_texts(name, allow_mismatch=allow_mismatch)
            self._documents += encode(speech, kept or texts, cache=cache)
        if not self._documents and not self._dialogues:
            raise ValueError(
                "Nothing is held out: name files that are not trained on in --config.data.heldout "
                "(a corpus manifest has held-out texts of its own)."
            )
        self.train = Joined(parts)
        held = list(self._dialogues)
        if self._documents:
            whole = np.concatenate(self._documents)
            held.append(Windows(whole, seq_len, where="the held-out text"))
        self.heldout = Joined(held)

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
                "lower it, or hold out more (texts twice as long as eval.prompt_tokens)."
            )
        return found


def _before_response(row: Row) -> list[int]:
    """The tokens before the first that is supervised, at least one."""
    return row.tokens[: max(int(row.supervised.argmax()), 1)].tolist()
