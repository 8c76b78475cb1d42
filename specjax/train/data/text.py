"""Plain text as training data: a corpus that a manifest pins, or text files."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specjax.checkpoint.load import Model
from specjax.core import hosts, pulse
from specjax.core.files import read_bytes, read_text, write_atomically
from specjax.train.corpus import load_corpus


@dataclasses.dataclass(frozen=True)
class Speech:
    """What of a target the reading of data needs."""

    tokenizer: Any  # checkpoint.tokenizer.Tokenizer
    vocab_size: int
    separator: int | None  # begins every document: BOS, or a token that ends a text
    stop_token_ids: tuple[int, ...]

    @classmethod
    def of(cls, target: Model) -> Speech:
        """How a `specjax.Model` reads and writes text."""
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
        pulse.beat()
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
    if not path.exists():
        raise ValueError(f"{path}: no such file to train on; check the path.")
    text = read_text(path)
    if not text.strip():
        raise ValueError(f"{path} is empty: there is nothing to train on.")
    return [text], []


def encode(
    speech: Speech,
    texts: Sequence[str],
    *,
    cache: Path | None,
    say: Callable[[str], None] | None = None,
) -> list[np.ndarray]:
    """The documents' tokens.

    ``cache`` is a directory that keeps them: tokenising a corpus takes minutes. What is damaged
    there is made again, and ``say`` is told (None: stderr).
    """
    documents = find(speech, texts, cache=cache, say=say)
    if documents is None:
        documents = [speech.document(text) for text in texts]
        keep(speech, texts, documents, cache=cache)
    return documents


def find(
    speech: Speech,
    texts: Sequence[str],
    *,
    cache: Path | None,
    say: Callable[[str], None] | None = None,
) -> list[np.ndarray] | None:
    """The tokens that the cache has of these texts, if it has them; see `encode`."""
    if cache is None or speech.tokenizer is None:
        return None
    path = _place(speech, texts, cache)
    try:
        return unpack(read_bytes(path), len(texts))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        note = f"{path}: a damaged token cache ({error}); it is made again"
        say(note) if say else print(note, file=sys.stderr, flush=True)
    return None


def keep(
    speech: Speech, texts: Sequence[str], documents: Sequence[np.ndarray], *, cache: Path | None
) -> None:
    """Writes the texts' tokens into the cache, if this is the process that writes."""
    if cache is None or speech.tokenizer is None or not hosts.is_first():
        return
    # A cache that cannot be written is none.
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        write_atomically(_place(speech, texts, cache), pack(documents))


def _place(speech: Speech, texts: Sequence[str], cache: Path) -> Path:
    said = [speech.tokenizer.fingerprint(), str(speech.separator)]
    return cache / f"{digest([*said, *texts])}.tokens"


def pack(documents: Sequence[np.ndarray]) -> bytes:
    """The hash of what follows, the documents' ends as int64, and their tokens as int32."""
    ends = np.cumsum([len(d) for d in documents], dtype="<i8")
    tokens = np.concatenate([np.zeros(0, "<i4"), *documents]).astype("<i4")
    content = ends.tobytes() + tokens.tobytes()
    return hashlib.sha256(content).digest() + content


def unpack(data: bytes, num: int) -> list[np.ndarray]:
    """The ``num`` documents that `pack` was given. Raises ValueError if it is not such a file."""
    content = data[32:]
    if hashlib.sha256(content).digest() != data[:32] or len(content) < 8 * num:
        raise ValueError(f"{len(data)} bytes that do not add up")
    ends = np.frombuffer(content[: 8 * num], "<i8")
    return np.split(np.frombuffer(content[8 * num :], "<i4").astype(np.int32), ends)[:num]


def default_cache() -> Path:
    """``~/.cache/specjax/tokens``, or XDG's like of it."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "specjax" / "tokens"


def digest(parts: Iterable[str]) -> str:
    """Of texts, one after the other."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", errors="surrogatepass")
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.hexdigest()[:32]
