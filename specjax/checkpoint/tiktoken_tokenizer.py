"""A tiktoken.model, as Kimi has instead of a tokenizer.json, run by the library tiktoken.

The file holds pieces and their ranks. How a text is split before they are merged, and the special
tokens behind them, are in code beside Kimi's checkpoints: here they are, after public descriptions,
as the published file and its code are not at hand.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.hf import read_config
from specjax.checkpoint.tokenizer import FromFiles, digest, in_one_line, needed, text_of
from specjax.core.files import is_there, read_bytes

_WORD = r"\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]"
# Runs of Chinese characters stand alone, and are no letters elsewhere; behind punctuation come line
# ends and no slash, where other vocabularies of this kind have one.
KIMI_SPLIT = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}{_WORD}]*[\p{{Ll}}{_WORD}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}{_WORD}]+[\p{{Ll}}{_WORD}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_NUM_SPECIAL = 256
_KIMI_SIZE = 163584  # pieces of the published vocabulary, and of those behind them:
_KIMI = {
    "[BOS]": 163584,
    "[EOS]": 163585,
    "<|im_end|>": 163586,
    "<|im_user|>": 163587,
    "<|im_assistant|>": 163588,
    "<|im_system|>": 163594,
    "<|im_middle|>": 163601,
}


class TiktokenTokenizer(FromFiles):
    """Pieces merged by rank, and special tokens behind them."""

    source = "tiktoken.model"
    byte_tokens: Mapping[int, int] = {}  # decoding reads all bytes together

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        beside: Mapping[str, int],
        plain: frozenset[str],
        directory: Path,
    ):
        """``beside``: tokens behind the pieces, of which texts leave out all but ``plain``."""
        import tiktoken

        super().__init__(directory)
        self._inner = tiktoken.Encoding(
            str(directory),
            pat_str=KIMI_SPLIT,
            mergeable_ranks=dict(ranks),
            special_tokens=dict(beside),
        )
        self._ranks, self._beside = ranks, beside
        self.vocab_size = max(*ranks.values(), *beside.values()) + 1
        self.special_tokens: Mapping[str, int] = {
            text: i for text, i in beside.items() if text not in plain
        }
        self.added = frozenset(beside.values())
        self.bos_id: int | None = None
        self.adds_bos = False

    def tokens(self) -> dict[int, str]:
        """Spelled as a tokenizer.json of bytes would, so that vocabularies can be compared."""
        letters = _letters()
        found = {i: "".join(letters[b] for b in piece) for piece, i in self._ranks.items()}
        return found | {i: text for text, i in self._beside.items()}

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        begin = [self.bos_id] if add_bos and self.adds_bos and self.bos_id is not None else []
        with in_one_line(f"{self._directory / self.source} cannot encode a text"):
            return begin + self._inner.encode(text, allowed_special="all", disallowed_special=())

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        special = set(self.special_tokens.values()) if skip_special_tokens else ()
        kept = [int(i) for i in ids if int(i) not in special]
        try:
            return self._inner.decode_bytes(kept).decode("utf-8", "replace")
        except (KeyError, OverflowError) as error:
            raise ValueError(f"{error.args[0]} is no token of {self._directory}.") from None

    def fingerprint(self) -> str:
        pieces = [(i, piece.hex()) for piece, i in self._ranks.items()]
        return digest(pieces, [KIMI_SPLIT, sorted(self._beside.items())])


def load_tiktoken(directory: Path) -> TiktokenTokenizer | None:
    """The tokenizer of a directory; None if it has no tiktoken.model.

    Raises:
      CheckpointError: if its files are damaged or contradict each other, or the library is not
        installed.
    """
    path = directory / TiktokenTokenizer.source
    if not is_there(path):
        return None
    ranks = _read_ranks(path)
    settings_path = directory / "tokenizer_config.json"
    settings = read_config(settings_path) if is_there(settings_path) else {}
    kind = settings.get("tokenizer_class", "TikTokenTokenizer")
    if kind != "TikTokenTokenizer":
        raise CheckpointError(
            f"{settings_path}: tokenizer_class={kind!r} splits texts in a way that is not known; "
            "TikTokenTokenizer, of Kimi, is read."
        )
    named, plain = _named(settings, settings_path)
    first = len(ranks)
    if first == _KIMI_SIZE:
        named = {**{i: text for text, i in _KIMI.items()}, **named}
        wrong = [text for text, i in _KIMI.items() if named.get(i) != text]
        if wrong:
            raise CheckpointError(
                f"{settings_path}: {wrong[0]} is token {_KIMI[wrong[0]]} of Kimi, which is called "
                f"{named[_KIMI[wrong[0]]]!r} here; the special tokens were renumbered."
            )
    if outside := [i for i in named if i < first]:
        raise CheckpointError(
            f"{settings_path}: {named[outside[0]]!r} is token {outside[0]}, which is a piece of "
            f"{path.name}."
        )
    numbers = {*range(first, first + _NUM_SPECIAL), *named}
    beside = {named.get(i, f"<|reserved_token_{i}|>"): i for i in sorted(numbers)}
    try:
        tokenizer = TiktokenTokenizer(ranks, beside, plain, directory)
    except ImportError:
        raise needed("tiktoken", path) from None
    except Exception as error:
        said = str(error).partition("\n")[0][:200]
        raise CheckpointError(f"{path}: not a vocabulary that works: {said}.") from None
    for name in ("bos", "eos", "pad"):
        text = text_of(settings, f"{name}_token")
        if text is not None and text not in beside:
            raise CheckpointError(f"{settings_path}: {name}_token {text!r} is no special token.")
        setattr(tokenizer, f"{name}_id", None if text is None else beside[text])
    if first == _KIMI_SIZE:  # its models end turns by either, and its files name one of them
        tokenizer.ends = (_KIMI["<|im_end|>"], _KIMI["[EOS]"])
    tokenizer.adds_bos = bool(settings.get("add_bos_token"))
    return tokenizer


def _read_ranks(path: Path) -> dict[bytes, int]:
    """A line a piece: base64, a space, its rank. Each byte must be a piece."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        if not line:
            continue
        try:
            piece, rank = line.split()
            ranks[base64.b64decode(piece, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise CheckpointError(
                f"{path}: line {number} is not a piece in base64 and its rank."
            ) from None
    whole = sorted(ranks.values()) == list(range(len(ranks)))
    if not whole or not all(bytes([b]) in ranks for b in range(256)):
        raise CheckpointError(
            f"{path}: ranks are not 0..{len(ranks) - 1}, each once, or not every byte is a piece; "
            "fetch it again."
        )
    return ranks


def _named(settings: Mapping[str, Any], path: Path) -> tuple[dict[int, str], frozenset[str]]:
    """id -> text of tokens behind the pieces, and those that texts show."""
    try:
        listed = {int(i): t for i, t in (settings.get("added_tokens_decoder") or {}).items()}
        named = {i: str(token["content"]) for i, token in listed.items()}
        plain = frozenset(t["content"] for t in listed.values() if not t.get("special", True))
    except (TypeError, ValueError, KeyError, AttributeError):
        raise CheckpointError(
            f"{path}: added_tokens_decoder does not give ids and texts of tokens."
        ) from None
    if len(set(named.values())) < len(named):
        raise CheckpointError(f"{path}: added_tokens_decoder gives a text to two tokens.")
    return named, plain


def _letters() -> list[str]:
    """The character that stands for each byte, as in vocabularies of bytes since GPT-2's."""
    shown = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = iter(range(256, 512))
    return [chr(b) if b in shown else chr(next(rest)) for b in range(256)]
