"""Stop strings end a text at the token that completes one, however it is decoded."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_bad_input import complain
from test_text import sentencepiece, word
from tiny_checkpoint import write_tiny

import specjax
from specjax.drafters import NGram
from specjax.prompts.ids import PlainTextWarning
from specjax.stopping import StopStrings, StopStringWarning

pytestmark = pytest.mark.filterwarnings(f"ignore::{PlainTextWarning.__module__}.PlainTextWarning")


class Target:
    """As much of a target as stop strings look at."""

    tokenizer = sentencepiece()


def end_of(stops: list[str], ids: list[int], prompt: list[int], size: int) -> Any:
    watch = StopStrings(Target(), stops, [prompt])  # type: ignore[arg-type]
    for upto in range(size, len(ids) + size, size):
        watch.look([ids[:upto]])
    end = watch.ends[0]
    return None if end is None else (end.characters, end.tokens)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_one_completed_first(size: int) -> None:
    the, a, paris, x = map(word, ("▁the", "▁a", "▁Paris", "x"))
    prompt, ids = [1, the, a], [paris, x, a, x, a, x]  # " Parisx ax ax"
    assert end_of([" Paris"], ids, prompt, size) == (0, 1)
    assert end_of(["Parisx ax", "x a"], ids, prompt, size) == (6, 3)
    assert end_of(["x ax ax", "is", "Paris"], ids, prompt, size) == (1, 1)  # begins first
    assert end_of(["x ax ax"], ids, prompt, size) == (6, 6)
    assert end_of(["ax a "], ids, prompt, size) is None
    assert end_of(["a Paris"], ids, prompt, size) is None  # the prompt is no part of the text
    byte = lambda *values: [3 + v for v in values]
    smile = byte(*"🙂".encode())
    assert end_of(["🙂"], [x, *smile, x], prompt, size) == (1, 5)
    assert end_of(["\n"], [x, *byte(0x0A), *smile], prompt, size) == (1, 2)


DRAFTERS = {"none": None, "ngram": NGram(3), "ngram 7": NGram(7)}


def test_any_way_of_decoding() -> None:
    """What is completed first ends the text: not what stands first in it."""
    target = specjax.load("demo:target")
    request: dict[str, Any] = {"stop": ["mport os\nimport os\nimpo", "rt"], "max_new_tokens": 64}
    for drafter in DRAFTERS.values():
        out = specjax.generate(target, drafter, "import os\n", **request)
        assert (out.text, out.finish, len(out.tokens[0])) == (["impo"], ["stop"], 1)
        for cycles in (1, 4, 16):
            pieces = list(
                specjax.stream(target, drafter, "import os\n", cycles_per_call=cycles, **request)
            )
            assert "".join(p.text for p in pieces) == "impo"
            assert [t for p in pieces for t in p.tokens] == out.tokens[0]
            assert pieces[-1].finish == "stop"


def test_a_space_of_sentencepiece(shared: Path) -> None:
    target = specjax.load(shared / "cases/tokenizers/llama2-like")
    request: dict[str, Any] = {"logit_bias": {328: 1e4}, "max_new_tokens": 1}
    out = specjax.generate(target, None, "the a", **request)
    assert out.text == [" Paris"] and out.trace.texts[0].pieces == (" Paris",)
    assert [p.text for p in specjax.stream(target, None, "the a", **request)] == [" Paris"]
    request |= {"stop": [" Paris"], "max_new_tokens": 4}
    out = specjax.generate(target, None, "the a", **request)
    assert (out.text, out.finish, len(out.tokens[0])) == ([""], ["stop"], 1)
    out = specjax.generate(target, NGram(3), "the a", **request)
    assert (out.text, out.finish, len(out.tokens[0])) == ([""], ["stop"], 1)


def test_a_special_token(tmp_path: Path) -> None:
    target = specjax.load(write_tiny(tmp_path / "t"))
    request: dict[str, Any] = {"logit_bias": {0: 1e4}, "max_new_tokens": 6, "stop_token_ids": ()}
    stop = ["<|endoftext|>"]
    assert specjax.generate(target, None, "def", **request).tokens == [[0] * 6]
    for drafter in DRAFTERS.values():
        out = specjax.generate(target, drafter, "def", stop=np.array(stop), **request)
        assert (out.tokens, out.finish, out.text) == ([[0]], ["stop"], [""])
    (piece,) = specjax.stream(target, None, "def", stop=tuple(stop), **request)
    assert (piece.tokens, piece.finish, piece.text) == ([0], "stop", "")
    with pytest.warns(StopStringWarning, match="give it alone"):
        specjax.check(target, None, "def", stop=["<|endoftext|>\n"])


def test_a_special_token_of_a_reference(shared: Path) -> None:
    target = specjax.load(shared / "parity/llama3")
    request: dict[str, Any] = {"logit_bias": {347: 1e4}, "max_new_tokens": 12}
    out = specjax.generate(target, None, "abc", stop=["<|eot_id|>"], stop_token_ids=(), **request)
    assert (out.tokens, out.finish, out.text) == ([[347]], ["stop"], [""])


def test_stops_that_are_none(tmp_path: Path) -> None:
    target = specjax.load(write_tiny(tmp_path / "t"))
    check = lambda stop: specjax.check(target, None, "def", stop=stop)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(np.str_("x"))
        check(np.array(["x", "y"]))
    for stop, words in (
        (["x", 3], ("stop holds 3", "stop_token_ids")),
        (b"x", ("a bytes",)),
        (["a\ud800"], ("surrogate",)),
        (["a", ""], ("empty",)),
    ):
        complain(lambda stop=stop: check(stop), *words)
