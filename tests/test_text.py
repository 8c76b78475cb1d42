"""The text of new tokens is what they add to the prompt's, read at once or token by token."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from test_tokenizer import TEXT, hf, llama2c
from tokenizers import decoders, models, normalizers

from specjax.checkpoint.llama2c_tokenizer import load_llama2c_tokenizer
from specjax.checkpoint.located import DEMO
from specjax.checkpoint.tokenizer import HfTokenizer, Tokenizer, load_tokenizer
from specjax.text import Reader, common, token_text

WORDS = ("▁the", "▁a", "▁Paris", "▁", "▁▁", "x", "é")


def sentencepiece(*, strip: bool = True) -> HfTokenizer:
    """Llama 2's kind: pieces, bytes to fall back to, and a first space that is dropped."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *WORDS]
    inner = tokenizers.Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    inner.normalizer = normalizers.Replace(" ", "▁")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if strip else parts)
    return HfTokenizer(inner, directory=Path(), bos_id=1, adds_bos=True)


def metaspace() -> HfTokenizer:
    inner = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, "x"))
    inner.decoder = decoders.Metaspace()
    return HfTokenizer(inner, directory=Path(), bos_id=None, adds_bos=False)


def word(text: str) -> int:
    return 259 + WORDS.index(text)


def new_text(tokenizer: Tokenizer, prompt: list[int], ids: list[int]) -> str:
    """The text of the new tokens ``ids`` behind ``prompt``, read at once."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *ids])
    return whole[common(before, whole) :]


def read(tokenizer: Tokenizer, prompt: list[int], new: list[int]) -> tuple[str, list[str]]:
    """The text read token by token, checked at each of them, and the piece of each token."""
    reader, shown, pieces = Reader(tokenizer, prompt), "", [""] * len(new)
    for i, token in enumerate(new):
        for index, text in reader.push([token]):
            shown += text
            pieces[index] += text
        assert shown + reader.open == new_text(tokenizer, prompt, new[: i + 1]), (prompt, new[:i])
    for index, text in reader.flush():
        shown += text
        pieces[index] += text
    assert not reader.flush() and reader.open == ""
    return shown, pieces


def test_the_first_space_is_new_text() -> None:
    tokenizer = sentencepiece()
    prompt = [1, word("▁the"), word("▁a")]
    assert tokenizer.decode(prompt) == "the a"
    assert new_text(tokenizer, prompt, [word("▁Paris")]) == " Paris"
    assert read(tokenizer, prompt, [word("▁Paris")]) == (" Paris", [" Paris"])
    assert read(tokenizer, [1], [word("▁Paris"), 2]) == ("Paris", ["Paris", ""])
    assert token_text(tokenizer, prompt, word("▁Paris")) == " Paris"
    assert token_text(tokenizer, prompt, 2) == "</s>"
    words = metaspace()
    assert read(words, [0], [1, 0]) == (" a the", [" a", " the"])
    assert read(words, [], [0, 1]) == ("the a", ["the", " a"])


def test_bytes_are_read_as_a_run() -> None:
    tokenizer = sentencepiece()
    byte = lambda *values: [3 + v for v in values]
    prompt, smile = [word("▁a")], byte(*"🙂".encode())
    new = [*byte(0x0A), *smile, word("▁a")]
    assert read(tokenizer, prompt, new) == ("\n🙂 a", ["\n", "", "", "", "🙂", " a"])
    # One bad byte, and none of them is what it was: this is how SentencePiece's decoders read.
    broken = [*byte(0x0A), *smile[:-1], word("▁a")]
    assert read(tokenizer, prompt, broken) == ("\ufffd" * 4 + " a", [*"\ufffd" * 4, " a"])
    assert read(tokenizer, prompt + smile[:2], smile[2:])[0] == "🙂"  # begun in the prompt
    assert read(tokenizer, prompt, [*smile[:2], 2, *smile[2:]])[0] == "🙂"  # across </s>
    reader = Reader(tokenizer, prompt)
    assert reader.push(byte(0x0A)) == [] and reader.open == "\n"


@pytest.mark.parametrize("kind", ["hf", "llama2c"])
def test_no_half_characters(tmp_path: Path, kind: str) -> None:
    tokenizer: Any = hf(tmp_path / "t") if kind == "hf" else llama2c()
    ids = tokenizer.encode(TEXT)
    reader, shown = Reader(tokenizer), ""
    for token in ids:
        shown += "".join(text for _, text in reader.push([token]))
        assert TEXT.startswith(shown)
    assert shown == TEXT
    half = tokenizer.encode("🙂", add_bos=False)[:-1]
    assert read(tokenizer, ids, half)[0] == "\ufffd"


def references(shared: Path) -> dict[str, Tokenizer]:
    found: dict[str, Any] = {
        path.name: load_tokenizer(path)
        for path in [
            *sorted((shared / "parity").iterdir()),
            shared / "cases/tokenizers/llama2-like",
        ]
        if (path / "tokenizer.json").is_file()
    }
    path = shared / "weights/stories260K/tok512.bin"
    return {**found, "llama2.c": load_llama2c_tokenizer(path, 512)}


def check_random_texts(tokenizer: Tokenizer, seed: int) -> None:
    """Ids at random, characters cut anywhere, special tokens and bytes among them."""
    rng = random.Random(seed)
    special, byte = [*tokenizer.special_tokens.values()], [*tokenizer.byte_tokens]
    for _ in range(60):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(12)]
        ids += rng.choices(special or ids, k=4) + rng.choices(byte or ids, k=rng.choice([0, 12]))
        rng.shuffle(ids)
        text = "".join(rng.choices(["a", " ", "\n", "é", "日", "🙂", "  x"], k=12))
        ids += tokenizer.encode(text, add_bos=False)
        for _ in range(rng.randrange(4)):
            del ids[rng.randrange(len(ids))]
        cut = rng.choice([0, 1, 5, len(ids) - 9])
        shown, pieces = read(tokenizer, ids[:cut], ids[cut:])
        assert shown == "".join(pieces) == new_text(tokenizer, ids[:cut], ids[cut:])


def test_random_texts(tmp_path: Path) -> None:
    demo = load_tokenizer(DEMO / "target")
    assert demo is not None
    kinds = [demo, hf(tmp_path / "t"), llama2c(), sentencepiece(), sentencepiece(strip=False)]
    for seed, tokenizer in enumerate(kinds):
        check_random_texts(tokenizer, seed)


def test_random_texts_of_the_references(shared: Path) -> None:
    for seed, tokenizer in enumerate(references(shared).values()):
        check_random_texts(tokenizer, seed)


class Counted:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, inner: Tokenizer):
        self.inner, self.decoded = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def decode(self, ids: Any, **kwargs: Any) -> str:
        self.decoded += len(ids)
        return self.inner.decode(ids, **kwargs)


@pytest.mark.parametrize("ids", [[word("▁the")], [word("▁"), 1, 2], [3 + 0xE2, 3 + 0x82, 3 + 0xAC]])
def test_cost_is_linear(ids: list[int]) -> None:
    tokenizer: Any = Counted(sentencepiece())
    reader = Reader(tokenizer, [word("x")] * 1000)
    for _ in range(1000):
        reader.push(ids)
        assert reader.open is not None
    reader.flush()
    assert tokenizer.decoded < 60 * 1000 * len(ids)
