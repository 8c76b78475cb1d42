"""Text <-> token ids: what a tokenizer can do, and Hugging Face's kind.

A directory without a tokenizer.json may have files of SentencePiece or tiktoken instead, which
their own libraries read (`checkpoint.sentencepiece_tokenizer`, `checkpoint.tiktoken_tokenizer`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.hf import read_config
from specjax.core.files import is_there, read_text

_PROBE = "A probe: 1+1=2, naïve\n"  # a tokenizer that panics should do so when it is loaded
# Of a Hugging Face directory, those that say how text is read and conversations are written.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "tiktoken.model",
    "vocab.json",
    "merges.txt",
)


class Tokenizer(Protocol):
    """What loading hands out and generation needs."""

    bos_id: int | None  # the id that begins a sequence, where there is one
    vocab_size: int  # one more than the largest id; a model's may be larger (padding)
    special_tokens: Mapping[str, int]  # text -> id of those that texts leave out
    # id -> byte of tokens that stand for a byte, where decoding reads a run of them as a whole: it
    # is UTF-8, or U+FFFD for each byte.
    byte_tokens: Mapping[int, int]
    added: frozenset[int]  # ids that stand beside the vocabulary proper, special or not

    def tokens(self) -> dict[int, str]:
        """id -> its text, as the vocabulary spells it."""
        ...

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        """Token ids of a text.

        ``add_bos`` begins them as the checkpoint's own tokenizer begins a sequence. Families
        without a beginning token (Qwen) add none either way.
        """
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids. Bytes that are not UTF-8 become U+FFFD."""
        ...

    def fingerprint(self) -> str:
        """Equal for two tokenizers iff they give every id the same meaning (and merge alike)."""
        ...


class FileTokenizer(Tokenizer, Protocol):
    """One of a directory's own files."""

    eos_id: int | None
    pad_id: int | None  # only passed on when it is exported
    ends: tuple[int, ...]  # that end a text, whatever the model's own files say

    def save(self, directory: Path) -> None:
        """Copies the files it was read from. Raises CheckpointError if they are gone."""
        ...


def needed(library: str, path: Path) -> CheckpointError:
    """That a library which reads a file is not installed."""
    return CheckpointError(
        f"{path}: is read by the package {library}, which is not installed: "
        "pip install 'specjax[tokenizers]'."
    )


def digest(vocabulary: Iterable[tuple[int, str]], merges: object) -> str:
    """SHA-256, in hexadecimal, of an id -> token mapping and the merges."""
    return hashlib.sha256(json.dumps([sorted(vocabulary), merges]).encode()).hexdigest()


class FromFiles:
    """What was read from a directory, and can be copied into another."""

    pad_id: int | None = None
    eos_id: int | None = None
    ends: tuple[int, ...] = ()  # that end a text, whatever the model's own files say
    source = ""  # the file of the vocabulary

    def __init__(self, directory: Path):
        self._directory = directory

    def save(self, directory: Path) -> None:
        """Copies the files it was read from, and with them what only other programs read.

        Raises:
          CheckpointError: if they are gone.
        """
        if not (self._directory / self.source).is_file():
            raise CheckpointError(
                f"{self._directory}: the tokenizer that was loaded from there is gone; put it back "
                "and export again."
            )
        for name in FILES:
            if (self._directory / name).is_file():
                shutil.copyfile(self._directory / name, directory / name)


class HfTokenizer(FromFiles):
    """A tokenizer.json, run by the `tokenizers` library."""

    source = "tokenizer.json"

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        directory: Path,
        bos_id: int | None,
        adds_bos: bool,
        pad_id: int | None = None,
        eos_id: int | None = None,
    ):
        """``directory`` is where it was read."""
        super().__init__(directory)
        self._inner = inner
        self._adds_bos = adds_bos
        self.bos_id, self.eos_id, self.pad_id = bos_id, eos_id, pad_id
        self.vocab_size = max(inner.get_vocab().values(), default=-1) + 1
        added = inner.get_added_tokens_decoder()
        self.special_tokens: Mapping[str, int] = {
            token.content: i for i, token in added.items() if token.special
        }
        self.added = frozenset(added)
        self.byte_tokens: Mapping[int, int] = _byte_tokens(inner)

    def tokens(self) -> dict[int, str]:
        return {i: text for text, i in self._inner.get_vocab().items()}

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        with in_one_line(f"{self._directory / 'tokenizer.json'} cannot encode a text"):
            ids = self._inner.encode(text, add_special_tokens=False).ids
        if not add_bos or not self._adds_bos or self.bos_id is None:
            return ids
        return [self.bos_id, *ids]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        ids = [int(i) for i in ids]
        with in_one_line(f"{self._directory / 'tokenizer.json'} cannot decode tokens"):
            return self._inner.decode(ids, skip_special_tokens=skip_special_tokens)

    def fingerprint(self) -> str:
        vocabulary = [(i, token) for token, i in self._inner.get_vocab().items()]
        return digest(vocabulary, json.loads(self._inner.to_str())["model"].get("merges"))


def _byte_tokens(inner: tokenizers.Tokenizer) -> dict[int, int]:
    """id -> byte, where the decoder falls back to bytes."""
    ids = {byte: inner.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
    letter = ids[ord("A")]
    if letter is None or inner.decode([letter]) != "A":
        return {}
    return {token: byte for byte, token in ids.items() if token is not None}


def _read(path: Path) -> tuple[tokenizers.Tokenizer, int | None]:
    """The tokenizer of a file that works, and the id that it puts in front of a text."""
    with _silence(), in_one_line(f"{path}: not a tokenizer that works"):
        inner = tokenizers.Tokenizer.from_str(read_text(path))
        # A file may ask for truncation or padding: prompts are never cut silently.
        inner.no_truncation()
        inner.no_padding()
        # What the file itself puts in front, e.g. Llama 3's <|begin_of_text|>.
        empty = inner.encode("")
        first = empty.ids[0] if empty.ids and empty.special_tokens_mask[0] else None
        with contextlib.suppress(Exception):  # not every vocabulary has all characters
            inner.decode(inner.encode(_PROBE, add_special_tokens=False).ids)
        return inner, first


@contextlib.contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """The library's own errors, panics of its Rust code included, as CheckpointError."""
    try:
        yield
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"
        if panic or type(error) is Exception:  # the library raises plain Exception
            raise CheckpointError(f"{what}: {str(error)[:200]}.") from None
        raise


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing is printed to stderr: a panic writes its backtrace there before it is raised."""
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def load_tokenizer(directory: Path) -> FileTokenizer | None:
    """The tokenizer of a Hugging Face directory, None if it has none.

    It is in tokenizer.json, else in SentencePiece's tokenizer.model or tiktoken's tiktoken.model.

    Raises:
      CheckpointError: if its files are malformed or name an unknown beginning token, or the library
        that reads them is not installed.
    """
    if is_there(directory / HfTokenizer.source):
        return _load_json(directory)
    # Only here: they stand on this file.
    from specjax.checkpoint.sentencepiece_tokenizer import load_sentencepiece
    from specjax.checkpoint.tiktoken_tokenizer import load_tiktoken

    return load_tiktoken(directory) or load_sentencepiece(directory)


def text_of(settings: Mapping[str, Any], name: str) -> str | None:
    """The text of a token that tokenizer_config.json names."""
    token = settings.get(name)
    return token.get("content") if isinstance(token, dict) else token


def _load_json(directory: Path) -> HfTokenizer:
    path = directory / HfTokenizer.source
    inner, first = _read(path)
    settings_path = directory / "tokenizer_config.json"
    if not is_there(settings_path):
        return HfTokenizer(inner, directory=directory, bos_id=first, adds_bos=first is not None)

    settings = read_config(settings_path)

    def id_of(name: str) -> int | None:
        text = text_of(settings, name)
        return None if text is None else inner.token_to_id(text)

    token = text_of(settings, "bos_token")
    bos_id = None if token is None else inner.token_to_id(token)
    if token is not None and bos_id is None:
        raise CheckpointError(f"{settings_path}: bos_token {token!r} is not in tokenizer.json.")
    said = settings.get("add_bos_token")
    adds_bos = bos_id is not None and (first == bos_id if said is None else bool(said))
    return HfTokenizer(
        inner,
        directory=directory,
        bos_id=bos_id,
        adds_bos=adds_bos,
        pad_id=id_of("pad_token"),  # only passed on when it is exported
        eos_id=id_of("eos_token"),
    )
