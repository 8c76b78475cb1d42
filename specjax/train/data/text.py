"""Plain text as training data: a corpus that a manifest pins, or text files."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specjax.train.corpus import load_corpus


@dataclasses.dataclass(frozen=True)
class Speech:
    """What of a target the reading of data needs."""

    tokenizer: Any  # checkpoint.tokenizer.Tokenizer
    vocab_size: int
    separator: int | None  # begins every document: BOS, or a token that ends a text
    stop_token_ids: tuple[int, ...]

    @classmethod
    def of(cls, target: Any) -> Speech:
        """Of a `specjax.Model`."""
        stops = tuple(target.stop_token_ids)
        separator = target.bos_token_id
        if separator is None and stops:
            separator = stops[0]
        return cls(target.tokenizer, target.config.vocab_size, separator, stops)

    def document(self, text: str) -> np.ndarray:
        """A document's tokens [N] int32, begun by the separator."""
        if self.tokenizer is None:
            raise ValueError("The target has no tokenizer.json: text cannot be read for it.")
        ids = self.tokenizer.encode(text)
        if self.separator is not None and ids[:1] != [self.separator]:
            ids = [self.separator, *ids]
        return np.array(ids, np.int32)


def read_texts(path: str | Path, *, allow_mismatch: bool = False) -> tuple[list[str], list[str]]:
    """The training and the held-out documents of a manifest (.json) or of one text file.

    A text file is one document and has no held-out part.

    Raises:
      ValueError: if there is no such file, or it is empty or not text.
    """
    path = Path(path).expanduser()
    if path.suffix == ".json":
        corpus = load_corpus(path, allow_mismatch=allow_mismatch)
        return list(corpus.train.values()), list(corpus.heldout.values())
    if not path.is_file():
        raise ValueError(f"{path}: no such file to train on; check the path.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; convert the file.") from None
    if not text.strip():
        raise ValueError(f"{path} is empty: there is nothing to train on.")
    return [text], []


def encode(speech: Speech, texts: Sequence[str], *, cache: Path | None) -> list[np.ndarray]:
    """The documents' tokens. ``cache`` keeps them: tokenising a corpus takes minutes."""
    if cache is None or speech.tokenizer is None:
        return [speech.document(text) for text in texts]
    said = [speech.tokenizer.fingerprint(), str(speech.separator)]
    path = cache / f"{_digest([*said, *texts])}.npz"
    if path.is_file():
        try:
            with np.load(path) as kept:
                return np.split(kept["tokens"], kept["ends"][:-1])
        except (OSError, ValueError, KeyError):  # damaged: made again
            pass
    documents = [speech.document(text) for text in texts]
    ends = np.cumsum([len(d) for d in documents])
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, suffix=".tmp", delete=False) as file:
            np.savez(file, tokens=np.concatenate(documents), ends=ends)
        os.replace(file.name, path)
    except OSError:  # a cache that cannot be written is none
        pass
    return documents


def default_cache() -> Path:
    """``~/.cache/specjax/tokens``, or XDG's like of it."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "specjax" / "tokens"


def _digest(parts: Iterable[str]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", errors="surrogatepass")
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.hexdigest()[:32]
