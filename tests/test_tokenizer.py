"""Tokenizers: beginnings, round trips and fingerprints."""

from __future__ import annotations

import json
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tiny_checkpoint import write_tiny
from tokenizers import decoders, models, pre_tokenizers, processors

import specjax
from specjax.checkpoint import CheckpointError
from specjax.checkpoint.hf import read_config
from specjax.checkpoint.llama2c_tokenizer import Llama2cTokenizer, load_llama2c_tokenizer
from specjax.checkpoint.load import EndTokenWarning, special_ids
from specjax.checkpoint.tokenizer import HfTokenizer, load_tokenizer

TEXT = 'Lily said "hé", 日本語 🙂 and\nleft.'


def llama2c_pieces(*extra: str) -> list[bytes]:
    special = [b"<unk>", b"\n<s>\n", b"\n</s>\n"]
    pieces = ["ab", "abc", "bc", *" abc<s>Lily", "\n", *extra]
    return [*special, *(b"<0x%02X>" % i for i in range(256)), *(p.encode() for p in pieces)]


def llama2c(*extra: str) -> Llama2cTokenizer:
    pieces = llama2c_pieces(*extra)
    return Llama2cTokenizer(pieces, [-float(max(0, i - 259)) for i in range(len(pieces))])


def write_hf(
    directory: Path, *, settings: Any = None, begins: bool = True, extra: str = ""
) -> Path:
    """A byte-level BPE, with or without <s> in front."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"he": 256, **({extra: 257} if extra else {})}
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, [("h", "e")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>"])
    if begins:
        bos = inner.token_to_id("<s>")
        inner.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", bos)])
    inner.enable_truncation(4)
    inner.enable_padding(length=4)
    directory.mkdir(exist_ok=True)
    inner.save(str(directory / "tokenizer.json"))
    if settings is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def hf(directory: Path, **kwargs: Any) -> HfTokenizer:
    tokenizer = load_tokenizer(write_hf(directory, **kwargs))
    assert tokenizer is not None
    return tokenizer


def test_hf_round_trip(tmp_path: Path) -> None:
    tokenizer = hf(tmp_path / "a", settings={"bos_token": "<s>"})
    ids = tokenizer.encode(TEXT)
    assert ids[0] == tokenizer.bos_id == 257 and tokenizer.vocab_size == 258
    assert len(ids) > 4 and tokenizer.encode("h") == ids[:1] + tokenizer.encode("h", add_bos=False)
    assert len(tokenizer.encode("h")) == 2  # the file's own truncation and padding do not apply
    assert ids[1:] == tokenizer.encode(TEXT, add_bos=False)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>" + TEXT


@pytest.mark.parametrize(
    ("begins", "settings", "bos_id", "adds"),
    [
        (True, None, 257, True),
        (False, None, None, False),
        (True, {"bos_token": "<s>"}, 257, True),
        (True, {"bos_token": {"content": "<s>"}, "add_bos_token": False}, 257, False),
        (False, {"bos_token": "<s>"}, 257, False),
        (False, {"bos_token": "<s>", "add_bos_token": True}, 257, True),
        (False, {"bos_token": None, "add_bos_token": False}, None, False),  # Qwen
    ],
)
def test_hf_begins_as_the_checkpoint_says(
    tmp_path: Path, begins: bool, settings: Any, bos_id: int | None, adds: bool
) -> None:
    tokenizer = hf(tmp_path / "t", begins=begins, settings=settings)
    assert tokenizer.bos_id == bos_id
    assert tokenizer.encode("h") == ([257] if adds else []) + tokenizer.encode("h", add_bos=False)


def test_hf_absent_or_bad(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path) is None
    write_hf(tmp_path / "t", settings={"bos_token": "<nope>"})
    with pytest.raises(CheckpointError, match="<nope>"):
        load_tokenizer(tmp_path / "t")
    (tmp_path / "t" / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        load_tokenizer(tmp_path / "t")


def test_fingerprint(tmp_path: Path) -> None:
    one, same = hf(tmp_path / "a", settings={"bos_token": "<s>"}), hf(tmp_path / "b", begins=False)
    other = hf(tmp_path / "c", extra="zz")
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    assert llama2c().fingerprint() == llama2c().fingerprint() != llama2c("x").fingerprint()


def test_llama2c_merges_best_first() -> None:
    tokenizer = llama2c()
    a, b, c, ab, abc, bc = (tokenizer._ids[p] for p in (b"a", b"b", b"c", b"ab", b"abc", b"bc"))

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_bos=False)

    assert encode("ab") == [ab] and encode("abc") == [abc] and encode("bc") == [bc]
    assert encode("abbc") == [ab, bc] and encode("aabcc") == [a, abc, c] and encode("cb") == [c, b]
    assert encode("") == [] and tokenizer.encode("") == [1]
    # Text cannot spell a special token or a byte, and unknown characters become their bytes.
    assert 1 not in encode("\n<s>\n") and encode("<0x41>")[0] == tokenizer._ids[b"<"]
    assert encode("é") == [3 + 0xC3, 3 + 0xA9]
    for text in (TEXT, " a", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode(encode(text)) == text
    assert tokenizer.decode([1, a], skip_special_tokens=False) == "<s>a"
    with pytest.raises(ValueError, match="vocabulary"):
        tokenizer.decode([tokenizer.vocab_size])


def test_llama2c_file(tmp_path: Path) -> None:
    path, pieces = tmp_path / "tok.bin", llama2c_pieces()
    body = b"".join(struct.pack("<fi", -float(i), len(p)) + p for i, p in enumerate(pieces))
    path.write_bytes(struct.pack("<i", 6) + body)
    tokenizer = load_llama2c_tokenizer(path, len(pieces))
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    with pytest.raises(CheckpointError, match=r"\d+ pieces, but the model has a vocabulary of 9"):
        load_llama2c_tokenizer(path, 9)
    for cut in (1, 9):
        path.write_bytes((struct.pack("<i", 6) + body)[:-cut])
        with pytest.raises(CheckpointError, match=r"truncated|pieces"):
            load_llama2c_tokenizer(path, len(pieces))


@pytest.mark.parametrize(
    ("config", "generation", "stops", "said"),
    [
        (None, None, (0,), "id 0, ends a text\\."),
        (None, {"temperature": 1.0}, (0,), "id 0, ends a text\\."),
        (5, None, (5, 0), "id 0, ends a text as well"),
        (0, None, (0,), None),
        (None, {"eos_token_id": [7]}, (7,), None),
        (5, {"eos_token_id": 1}, (1,), None),
    ],
)
def test_the_tokenizers_own_end_token(
    tmp_path: Path, config: Any, generation: Any, stops: tuple[int, ...], said: str | None
) -> None:
    """It counts where generation_config.json names none, and a line says so."""
    directory = write_tiny(tmp_path / "t")
    raw = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**raw, "eos_token_id": config}))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert specjax.load(directory).stop_token_ids == stops
    assert [w.category for w in caught] == [EndTokenWarning] * bool(said)
    if said:
        assert re.search(said, str(caught[0].message))


@pytest.mark.parametrize(
    ("config", "generation", "stops"),
    [
        # gpt-oss: 200007 ends a message, behind which the answer follows, and no text.
        (
            {"vocab_size": 201088, "eos_token_id": 200002},
            {"eos_token_id": [200002, 199999, 200012]},
            (200002, 199999, 200012),
        ),
        (
            {"text_config": {"vocab_size": 163840, "eos_token_id": 163585}},
            {"eos_token_id": [163586, 163585]},
            (163586, 163585),
        ),
        ({"text_config": {"vocab_size": 163840, "eos_token_id": 163585}}, None, (163585,)),
        ({"text_config": {"vocab_size": 99, "eos_token_id": [4, 5]}}, {"top_k": 1}, (4, 5)),
    ],
)
def test_stops_of_families(
    tmp_path: Path, config: Any, generation: Any, stops: tuple[int, ...]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    raw = read_config(tmp_path / "config.json")
    found, said = special_ids(tmp_path, raw, "eos_token_id")
    assert found == stops and said == ("eos_token_id" in (generation or {}))
    wrong = json.dumps({"eos_token_id": 999999})
    (tmp_path / "generation_config.json").write_text(wrong)
    with pytest.raises(CheckpointError, match="eos_token_id=999999 is not a token"):
        special_ids(tmp_path, raw, "eos_token_id")
