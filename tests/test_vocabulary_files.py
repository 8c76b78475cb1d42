"""Vocabularies of SentencePiece and tiktoken, trained by those libraries on a few lines."""

from __future__ import annotations

import base64
import io
import json
import random
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from test_text import check_random_texts
from tiktoken import _educational
from tiny_checkpoint import write_tiny

import specjax
from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.tiktoken_tokenizer import load_tiktoken
from specjax.checkpoint.tokenizer import load_tokenizer

LINES = [
    "the theatre of the other",
    "we don't add(a, b)",
    "世界 世世 日本",
    "a/b // c",
    "éa 12345",
] * 4
TEXTS = (
    "the other  theatre\n\n add(12345)",
    " 日本 🙂 naïve\tx",
    "世界世世a世}\n///\nwe're",
    "",
    " ",
)
KIMI = {
    163586: "<|im_end|>",
    163587: "<|im_user|>",
    163588: "<|im_assistant|>",
    163594: "<|im_system|>",
    163601: "<|im_middle|>",
}


def trained(size: int, lines: Sequence[str] = LINES) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        vocab_size=size,
        model_type="bpe",
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return written.getvalue()


@pytest.fixture(scope="module")
def pieces() -> bytes:
    return trained(320)


def with_pieces(directory: Path, pieces: bytes, **settings: Any) -> Path:
    directory.mkdir()
    (directory / "tokenizer.model").write_bytes(pieces)
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def test_sentencepiece(tmp_path: Path, pieces: bytes) -> None:
    tokenizer = load_tokenizer(with_pieces(tmp_path / "m", pieces))
    assert tokenizer is not None
    model: Any = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, 320)
    assert tokenizer.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert tokenizer.tokens()[3 + 0x41] == "<0x41>"
    for text in TEXTS:
        ids = model.encode(text)
        assert tokenizer.encode(text) == [1, *ids]
        assert tokenizer.decode([1, *ids, 2]) == text == model.decode(ids)
    rng = random.Random(0)
    valid = [i for i in range(3, 320) if not model.is_byte(i) or i < 3 + 0x80]
    for _ in range(200):
        ids = rng.choices(valid, k=6)
        assert tokenizer.decode(ids) == model.decode(ids)
    check_random_texts(tokenizer, 0)
    with pytest.raises(ValueError, match="Token 320"):
        tokenizer.decode([320])


def test_tokens_beside_the_pieces(tmp_path: Path, pieces: bytes) -> None:
    turn = {"content": "<turn>", "special": True}
    shown = {"content": "<call>", "special": False}
    more = {"added_tokens_decoder": {"320": turn, "322": shown}, "eos_token": turn}
    old = load_tokenizer(with_pieces(tmp_path / "old", pieces, **more, add_bos_token=False))
    new = load_tokenizer(with_pieces(tmp_path / "new", pieces, **more, legacy=False))
    assert old is not None and new is not None
    assert (new.eos_id, new.vocab_size, new.bos_id) == (320, 323, 1)
    text = "<turn>the<call>the</s>"
    the, bare = old.encode("the"), [i for i in new.encode("<turn>the") if i not in (1, 320)]
    assert old.encode(text) == [320, *the, 322, *the, 2]
    assert new.encode(text) == [1, 320, *bare, 322, *bare, 2] and bare != the
    assert new.decode(new.encode(text)) == "the<call>the"
    assert new.decode(new.encode(text), skip_special_tokens=False) == "<s>" + text
    assert len({old.fingerprint(), new.fingerprint()}) == 1
    check_random_texts(new, 1)
    copy = tmp_path / "copy"
    copy.mkdir()
    new.save(copy)
    again = load_tokenizer(copy)
    assert again is not None and again.encode(text) == new.encode(text)


def with_ranks(directory: Path, ranks: dict[bytes, int], **settings: Any) -> Path:
    directory.mkdir()
    lines = (f"{base64.b64encode(piece).decode()} {rank}" for piece, rank in ranks.items())
    (directory / "tiktoken.model").write_text("\n".join(lines) + "\n")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    found = _educational.bpe_train("\n".join(LINES), 280, r"\S+|\s+", visualise=None)
    # Pieces that Kimi's split must keep apart, or together.
    for text in ("世", "界", "世界", "a世", "//", "}\n", "}\n//", "123", "1234", "we're"):
        raw = text.encode()
        for end in range(2, len(raw) + 1):
            found.setdefault(raw[:end], len(found))
    return found


def test_tiktoken(tmp_path: Path, ranks: dict[bytes, int]) -> None:
    first = len(ranks)
    named = {str(first + i - 163584): {"content": text} for i, text in KIMI.items()}
    named[str(first + 11)] = {"content": "<|tool|>", "special": False}
    tokenizer = load_tokenizer(with_ranks(tmp_path / "m", ranks, added_tokens_decoder=named))
    assert tokenizer is not None and tokenizer.bos_id is None
    assert tokenizer.vocab_size == first + 256 == first + len(tokenizer.added)
    assert tokenizer.special_tokens["<|im_end|>"] == first + 2
    assert tokenizer.special_tokens[f"<|reserved_token_{first + 255}|>"] == first + 255
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    turn = tokenizer.encode("<|im_user|>the<|tool|>the<|im_end|>")
    assert (turn[0], turn[-1]) == (first + 3, first + 2) and first + 11 in turn
    assert tokenizer.decode(turn) == "the<|tool|>the"
    assert len(set(tokenizer.tokens().values())) == tokenizer.vocab_size
    assert tokenizer.tokens()[ranks[b" "]] == "Ġ"
    check_random_texts(tokenizer, 2)
    with pytest.raises(ValueError, match=f"{first + 256} is no token"):
        tokenizer.decode([first + 256])


def test_how_kimi_splits(tmp_path: Path, ranks: dict[bytes, int]) -> None:
    tokenizer = load_tokenizer(with_ranks(tmp_path / "m", ranks))
    assert tokenizer is not None
    spelled = lambda text: [tokenizer.decode([i]) for i in tokenizer.encode(text)]
    assert spelled("世界") == ["世界"]
    assert spelled("a世") == ["a", "世"]  # Chinese characters are no letters of a word
    assert spelled("}\n//") == ["}\n", "//"]  # line ends belong to punctuation, slashes do not
    assert spelled("1234") == ["123", "4"]  # three digits at most
    assert spelled("we're") == ["we're"]  # with its ending, one word


def test_kimis_own_ids(tmp_path: Path) -> None:
    """A vocabulary of the published size has its special tokens where models expect them."""
    pairs = [bytes([a, b]) for a in range(256) for b in range(256)]
    triples = [bytes([a, b, c]) for a in range(6) for b in range(256) for c in range(256)]
    all_pieces = [bytes([b]) for b in range(256)] + pairs + triples
    ranks = {piece: i for i, piece in enumerate(all_pieces[:163584])}
    decoder = {str(i): {"content": text} for i, text in KIMI.items()}
    tokenizer = load_tiktoken(with_ranks(tmp_path / "m", ranks, added_tokens_decoder=decoder))
    assert tokenizer is not None and tokenizer.vocab_size == 163840
    assert {i: t for t, i in tokenizer.special_tokens.items() if i in KIMI} == KIMI
    assert tokenizer.encode("<|im_middle|>") == [163601] and tokenizer.ends == (163586, 163585)
    decoder["163587"], decoder["163588"] = decoder["163588"], decoder["163587"]
    (tmp_path / "m" / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": decoder})
    )
    with pytest.raises(CheckpointError, match=r"<\|im_user\|> is token 163587 .* renumbered"):
        load_tiktoken(tmp_path / "m")


@pytest.mark.parametrize("library", ["sentencepiece", "tiktoken"])
def test_without_the_library(
    tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch, ranks: Any, pieces: bytes
) -> None:
    path = tmp_path / "m"
    with_pieces(path, pieces) if library == "sentencepiece" else with_ranks(path, ranks)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(CheckpointError, match=r"\[tokenizers\]") as error:
        load_tokenizer(path)
    assert library in str(error.value) and "\n" not in str(error.value)


def test_damaged_files(tmp_path: Path, ranks: dict[bytes, int], pieces: bytes) -> None:
    def refused(path: Path, words: str) -> None:
        with pytest.raises(CheckpointError, match=words) as error:
            load_tokenizer(path)
        assert "\n" not in str(error.value)

    refused(with_pieces(tmp_path / "a", b"nothing"), "not a model of SentencePiece")
    refused(with_pieces(tmp_path / "b", b""), "not a model of SentencePiece")
    refused(with_pieces(tmp_path / "c", b"IQ== 0\nIg== 1\n"), "of tiktoken's kind")
    refused(with_pieces(tmp_path / "d", pieces, bos_token="<b>"), "bos_token '<b>'")
    refused(with_pieces(tmp_path / "e", pieces, added_tokens_decoder={"1": 2}), "do.* not give")
    refused(with_ranks(tmp_path / "f", {b"a": 0}), "not every byte")
    refused(with_ranks(tmp_path / "g", ranks, tokenizer_class="Qwen"), "tokenizer_class='Qwen'")
    refused(with_ranks(tmp_path / "h", ranks, eos_token="[E]"), "eos_token '\\[E\\]'")
    (tmp_path / "h" / "tiktoken.model").write_text("IQ== x\n")
    refused(tmp_path / "h", "line 1 ")


def test_a_model_that_has_pieces_alone(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write_tiny(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).unlink()
    (path / "tokenizer.model").write_bytes(trained(269, ["the other"] * 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it names its end token twice
        target = specjax.load(path)
    out = specjax.generate(target, None, "the other", max_new_tokens=4)
    tokenizer = target.tokenizer
    assert tokenizer is not None and target.bos_token_id == 0
    prompt = tokenizer.encode("the other")
    whole = tokenizer.decode([*prompt, *map(int, out.tokens[0])])
    assert whole == "the other" + out.text[0]
