"""A tokenizer.model of SentencePiece, encoded by its own library.

Special tokens and those that other files add (added_tokens.json, ``added_tokens_decoder`` of
tokenizer_config.json) are found in a text first, as Transformers does; what lies between them is
SentencePiece's. With ``legacy`` false only the beginning of a text gets the space that it puts in
front.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.hf import read_config
from specjax.checkpoint.tokenizer import FromFiles, digest, needed, text_of
from specjax.core.files import is_there, read_bytes

_SPACE = "▁"
# normalizer_spec { add_dummy_prefix: false }, which replaces what the message said before.
_NO_SPACE = b"\x1a\x02\x18\x00"


class SentencePieceTokenizer(FromFiles):
    """Pieces, and tokens beside them."""

    source = "tokenizer.model"
    # None: bytes are joined and read here, an unfinished character as one U+FFFD, whatever is
    # valid beside it.
    byte_tokens: Mapping[int, int] = {}

    def __init__(self, model: Any, added: Mapping[str, tuple[int, bool]], directory: Path):
        """``added``: text -> id and whether it is special; ``model``: SentencePiece's processor."""
        super().__init__(directory)
        self._model, self._inside, size = model, model, model.get_piece_size()
        self.legacy = True
        self.adds_bos = False
        self.bos_id: int | None = model.bos_id() if model.bos_id() >= 0 else None
        self.eos_id = model.eos_id() if model.eos_id() >= 0 else None
        self.pad_id = model.pad_id() if model.pad_id() >= 0 else None
        self._texts = {i: model.id_to_piece(i) for i in range(size)}
        own = [i for i in range(size) if model.is_control(i) or model.is_unknown(i)]
        special = {self._texts[i]: i for i in own}
        special |= {text: i for text, (i, is_special) in added.items() if is_special}
        self._texts |= {i: text for text, (i, _) in added.items()}
        self.special_tokens: Mapping[str, int] = special
        self._beside = {**special, **{text: i for text, (i, _) in added.items()}}
        self.added = frozenset(self._beside.values())
        self.vocab_size = max(self._texts) + 1
        self._scores = [model.get_score(i) for i in range(size)]
        self._bytes = self._as_bytes(model, size)
        longest = sorted(self._beside, key=len, reverse=True)
        self._split = re.compile("|".join(map(re.escape, longest)) or r"(?!)")
        # What the model does to the beginning of a text, it undoes when it decodes.
        self._strips = model.normalize("a").startswith(_SPACE)
        self._strips_all = model.normalize("  a") == model.normalize("a")

    def _as_bytes(self, model: Any, size: int) -> dict[int, bytes]:
        """Of each token; a space in front is still there."""
        found = {i: text.encode() for i, text in self._texts.items()}
        for i in range(size):
            if i in self.added:
                continue
            if model.is_byte(i):
                found[i] = bytes([int(self._texts[i][3:5], 16)])
            else:
                found[i] = self._texts[i].replace(_SPACE, " ").encode()
        return found

    def tokens(self) -> dict[int, str]:
        return dict(self._texts)

    def id_of(self, text: str) -> int | None:
        """Of a token that is spelled so."""
        found = self._beside.get(text, self._model.piece_to_id(text))
        return found if self._texts[found] == text else None

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        ids = [self.bos_id] if add_bos and self.adds_bos and self.bos_id is not None else []
        position = 0
        for match in self._split.finditer(text):
            ids += self._pieces(text[position : match.start()], position == 0)
            ids.append(self._beside[match.group()])
            position = match.end()
        return ids + self._pieces(text[position:], position == 0)

    def _pieces(self, text: str, first: bool) -> list[int]:
        if not text:
            return []
        text = text.encode("utf-8", "replace").decode()  # no halves of surrogate pairs
        model = self._model if first or self.legacy else self._without_space()
        found: list[int] = model.encode(text)
        return found

    def _without_space(self) -> Any:
        if self._inside is self._model:
            import sentencepiece

            self._inside = sentencepiece.SentencePieceProcessor(
                model_proto=self._model.serialized_model_proto() + _NO_SPACE
            )
        return self._inside

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        special = set(self.special_tokens.values()) if skip_special_tokens else ()
        out, beginning = bytearray(), self._strips or self._strips_all
        for i in map(int, ids):
            if i in special:
                continue
            part = self._bytes.get(i)
            if part is None:
                raise ValueError(f"Token {i} is not in the vocabulary, 0..{self.vocab_size - 1}.")
            if beginning and i not in self.added:
                begins = self._texts[i].startswith(_SPACE)
                part = part[begins:]
                beginning = not part and (self._strips_all or not begins)
            out += part
            beginning = beginning and not out
        return out.decode("utf-8", "replace")

    def fingerprint(self) -> str:
        return digest(self._texts.items(), self._scores)


def load_sentencepiece(directory: Path) -> SentencePieceTokenizer | None:
    """The tokenizer of a directory; None if it has no tokenizer.model.

    Raises:
      CheckpointError: if it is damaged, or the library is not installed.
    """
    path = directory / SentencePieceTokenizer.source
    if not is_there(path):
        return None
    raw = read_bytes(path)
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\s", raw):
        raise CheckpointError(
            f"{path}: is of tiktoken's kind and does not say how text is split; use a directory "
            "that has tokenizer.json."
        )
    try:
        import sentencepiece
    except ImportError:
        raise needed("sentencepiece", path) from None
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=raw)
        size = model.get_piece_size()
    except Exception as error:  # the library raises RuntimeError, and others
        said = str(error).partition("\n")[0][:200]
        raise CheckpointError(f"{path}: not a model of SentencePiece: {said}.") from None
    if size <= 0:
        raise CheckpointError(f"{path}: not a model of SentencePiece: it has no pieces.")
    settings_path = directory / "tokenizer_config.json"
    settings = read_config(settings_path) if is_there(settings_path) else {}
    tokenizer = SentencePieceTokenizer(model, _added(directory, settings), directory)
    for name in ("bos", "eos", "pad"):
        text = text_of(settings, f"{name}_token")
        if text is None:
            continue
        token = tokenizer.id_of(text)
        if token is None:
            raise CheckpointError(
                f"{settings_path}: {name}_token {text!r} is in neither {path.name} nor "
                "added_tokens.json."
            )
        setattr(tokenizer, f"{name}_id", token)
    adds: Any = settings.get("add_bos_token")
    tokenizer.adds_bos = tokenizer.bos_id is not None and (adds is None or bool(adds))
    tokenizer.legacy = settings.get("legacy") is not False
    return tokenizer


def _added(directory: Path, settings: Mapping[str, Any]) -> dict[str, tuple[int, bool]]:
    """text -> id, and whether it is special."""
    others: Any = settings.get("additional_special_tokens") or []
    special = {t.get("content") if isinstance(t, dict) else t for t in others}
    special |= {text_of(settings, f"{name}_token") for name in ("bos", "eos", "unk", "pad")}
    found: dict[str, tuple[int, bool]] = {}
    path = directory / "added_tokens.json"
    listed: dict[str, Any] = read_config(path) if is_there(path) else {}
    try:
        for text, i in listed.items():
            found[text] = (_token(i), text in special)
        for key, token in (settings.get("added_tokens_decoder") or {}).items():
            text = token["content"]
            found[text] = (_token(int(key)), bool(token.get("special")) or text in special)
    except (TypeError, ValueError, KeyError, AttributeError):
        raise CheckpointError(
            f"{directory}: added_tokens.json or added_tokens_decoder of tokenizer_config.json does "
            "not give texts and their ids."
        ) from None
    return found


def _token(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError
    return value
