"""Hostile and broken checkpoint files end in one line within seconds: no traceback, no hang."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import write_tiny

import specjax
from specjax.checkpoint import CheckpointError
from specjax.checkpoint.drafters.load import load_drafter
from specjax.checkpoint.pickle_reader import read_pickle
from specjax.checkpoint.tokenizer import load_tokenizer

WEIGHTS, INDEX, TOKENIZER = "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> Path:
    return write_tiny(tmp_path_factory.mktemp("whole") / "m")


@pytest.fixture
def m(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "m"))


@pytest.fixture(autouse=True)
def quickly() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 20


def refused(call: Callable[[], Any], *words: str) -> None:
    with pytest.raises(CheckpointError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and len(message) < 1100, message
    assert message.isprintable()
    for word in words:
        assert word in message, message


def safetensors(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(*shape: int, offsets: Any = (0, 0), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_headers(m: Path) -> None:
    names = [f'"t{i}": {json.dumps(entry(0))}' for i in range(60_000)]
    cases: list[tuple[bytes, str]] = [
        (
            safetensors(("{" + ", ".join([*names, names[59_999]]) + "}").encode()),
            "duplicate entry t5",
        ),
        (safetensors(DEEP), "header is not JSON"),
        (safetensors(b"{}", length=2**63), "its header should be 9223372036854775808 bytes"),
        (safetensors(b"{}", length=10**9), "its header should be 1000000000 bytes"),
        (b"", "truncated"),
        (safetensors(b"[1]"), "not a JSON object"),
        (safetensors(b'{"a": 1}'), "malformed header entry of tensor a"),
        (safetensors(json.dumps({"a": entry(2**62, offsets=(0, 2**64))}).encode()), "malformed"),
        (safetensors(json.dumps({"a": entry(4, offsets=(0, 2**60))}).encode()), "does not fit"),
        (safetensors(json.dumps({"a": entry(*[10**9] * 100_000)}).encode()), "malformed"),
        (safetensors(json.dumps({"a": entry(-1)}).encode()), "malformed"),
        (
            safetensors(json.dumps({"a": entry(1, offsets=(4, 8))}).encode(), b"0" * 8),
            "do not follow",
        ),
        (
            safetensors(json.dumps({n: entry(2, offsets=(0, 8)) for n in "ab"}).encode(), b"0" * 8),
            "do not follow",
        ),
        (
            safetensors(b'{"a": {"dtype": "F32", "shape": [1e9], "data_offsets": [0, 4]}}'),
            "malformed",
        ),
        (safetensors(json.dumps({"\x1b[2J" * 10**5: 1}).encode()), "of tensor \ufffd[2J"),
        (safetensors(b"{" + b'"x' * 10 + b"\xff" + b"}"), "not JSON"),
    ]
    for content, message in cases:
        (m / WEIGHTS).write_bytes(content)
        refused(lambda: specjax.load(m), WEIGHTS, message)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", TOKENIZER, "tokenizer_config.json", INDEX]
)
def test_json(m: Path, name: str) -> None:
    for content in (DEEP, b"[" * 100_000, b"", b"\0\1", b"[]", b'{"a": ', b'"x"', b"\xff\xfe{}"):
        (m / name).write_bytes(content)
        refused(lambda: specjax.load(m), name)


def make(kind: str, path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    else:
        path.symlink_to("/dev/zero")


FILES = (
    *("config.json", "generation_config.json", TOKENIZER, "tokenizer_config.json"),
    *(INDEX, WEIGHTS),
)


@pytest.mark.parametrize("kind", ["pipe", "directory", "loop", "dangling", "device"])
def test_what_is_no_file(m: Path, kind: str) -> None:
    for name in FILES:
        moved = m / name
        kept = moved.read_bytes() if moved.exists() else None
        moved.unlink(missing_ok=True)
        make(kind, moved)
        refused(lambda: specjax.load(m), name)
        moved.rmdir() if kind == "directory" else moved.unlink()
        if kept is not None:
            moved.write_bytes(kept)
    assert specjax.load(m).tokenizer is not None


def test_what_is_no_file_of_a_drafter(m: Path, tmp_path: Path) -> None:
    target = specjax.load(m)
    draft = tmp_path / "d"
    draft.mkdir()
    (draft / "config.json").write_text(json.dumps({"medusa_num_heads": 2}))
    for name in ("medusa_lm_head.pt", "pytorch_model.bin", "medusa_lm_head.safetensors"):
        os.mkfifo(draft / name)
        refused(lambda: load_drafter(draft, target), name, "not an ordinary file")
        (draft / name).unlink()
    for content in (b"", b"PK\3\4", b"\x80\x02.", b"version https://git-lfs"):
        (draft / "medusa_lm_head.pt").write_bytes(content)
        refused(lambda: load_drafter(draft, target), "medusa_lm_head.pt")
    os.mkfifo(tmp_path / "pipe.bin")
    refused(lambda: specjax.load(tmp_path / "pipe.bin"), "pipe.bin")
    header = struct.pack("<7i", *[2**31 - 1] * 7)
    (tmp_path / "huge.bin").write_bytes(header)
    refused(lambda: specjax.load(tmp_path / "huge.bin"), "huge.bin")
    (tmp_path / "many.bin").write_bytes(struct.pack("<7i", 2, 1, 2**31 - 1, 1, 1, 1, 1))
    refused(lambda: specjax.load(tmp_path / "many.bin"), "many.bin", "truncated")


def test_an_index_stays_in_its_directory(m: Path, tmp_path: Path) -> None:
    shutil.copy(m / WEIGHTS, tmp_path / "outside.safetensors")
    names = ["model.norm.weight"]
    (m / WEIGHTS).unlink()
    for file in (
        "../outside.safetensors",
        str(tmp_path / "outside.safetensors"),
        "..",
        "",
        ".",
        "a/b",
    ):
        (m / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))
        refused(lambda: specjax.load(m), INDEX, "not in that directory")


# Tokenizers.

AB = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]


def processor(*single: Any) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": list(single), "pair": AB, "special_tokens": {}}


BROKEN: dict[str, dict[str, Any]] = {
    "an unknown token": {
        "post_processor": processor({"SpecialToken": {"id": "<nope>", "type_id": 0}}, AB[0])
    },
    "no second text": {"post_processor": processor(AB[1])},
    "a pattern": {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "("},
            "behavior": "Isolated",
            "invert": False,
        }
    },
    "a model": {"model": {"type": "nope"}},
    "merges": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}},
}


@pytest.mark.parametrize("case", BROKEN)
def test_tokenizers(m: Path, case: str, capfd: Any) -> None:
    said = json.loads((m / TOKENIZER).read_text())
    (m / TOKENIZER).write_text(json.dumps(said | BROKEN[case]))
    refused(lambda: specjax.load(m), TOKENIZER, "not a tokenizer that works")
    assert capfd.readouterr().err == ""  # the panic's own report


def test_a_tokenizer_that_panics_later(m: Path) -> None:
    tokenizer = load_tokenizer(m)
    assert tokenizer is not None
    tokenizer._inner.enable_truncation(1)
    tokenizer._inner.post_processor = None

    class PanicException(BaseException):  # what the library raises derives from it
        pass

    class Panics:
        def encode(self, *args: Any, **kwargs: Any) -> None:
            raise PanicException("index out of bounds")

        decode = encode

    tokenizer._inner = Panics()  # type: ignore[assignment]
    refused(lambda: tokenizer.encode("x"), TOKENIZER, "cannot encode", "index out of bounds")
    refused(lambda: tokenizer.decode([1]), TOKENIZER, "cannot decode")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bos_token": 3}, "bos_token=3: must be a token's text"),
        ({"bos_token": {"text": "x"}}, "bos_token={'text': 'x'}: must be"),
        ({"bos_token": "<nope>"}, "'<nope>' is not in tokenizer.json"),
        ({"add_bos_token": "yes"}, "add_bos_token='yes': must be true or false"),
        ({"eos_token": ["x"]}, "eos_token=['x']"),
    ],
)
def test_tokenizer_settings(m: Path, change: dict[str, Any], words: str) -> None:
    (m / "tokenizer_config.json").write_text(json.dumps(change))
    refused(lambda: specjax.load(m), "tokenizer_config.json", words)


# Pickles.


def zipped(path: Path, program: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", program)
    return path


def test_pickles_that_would_never_end(tmp_path: Path) -> None:
    # ("x",) -> t1 = (t, t), t2 = (t1, t1) ...: to hash t60 takes 2**60 steps.
    doubled = b"\x80\x02}(" + b"X\1\0\0\0x\x85q\0"
    for i in range(60):
        doubled += b"h" + bytes([i]) + b"\x86q" + bytes([i + 1])
    cases = [
        (doubled + b"K\1u.", "the same tuple twice"),
        (b"\x80\x02" + b"(" * 100_000 + b".", "malformed"),
        (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "holds a list"),
        (pickle.dumps({"a": 1}, 2), "only a flat dictionary"),
        (pickle.dumps({(1, 2): 1}, 2), "a tuple: a int"),
    ]
    for program, message in cases:
        refused(lambda program=program: read_pickle(zipped(tmp_path / "p.pt", program)), message)
