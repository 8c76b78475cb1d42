"""Target and draft whose vocabularies differ in padding or reserved tokens alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import TEXT, write_tiny

import specjax
from specjax.checkpoint.tokenizer import load_tokenizer
from specjax.drafters import LM
from specjax.drafters.vocabularies import VocabularyWarning, check_same_tokens


def edited(source: Path, directory: Path, change: Any) -> Path:
    shutil.copytree(source, directory)
    path = directory / "tokenizer.json"
    said = json.loads(path.read_text())
    change(said)
    path.chmod(0o644)
    path.write_text(json.dumps(said))
    return directory


def test_a_reserved_token_of_another_name(shared: Path, tmp_path: Path) -> None:
    def rename(said: dict[str, Any]) -> None:
        said["added_tokens"][-1]["content"] = "<|eom_id|>"

    source = shared / "parity/llama3"
    target = specjax.load(source, dtype="float32")
    draft = specjax.load(edited(source, tmp_path / "draft", rename), dtype="float32")
    with pytest.warns(VocabularyWarning, match=r"agree in all ordinary tokens.*'<\|eom_id\|>'"):
        out = specjax.generate(target, LM(draft, 3), "abc", max_new_tokens=32)
    assert out.tau == 4.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: Any) -> Path:
    return write_tiny(tmp_path_factory.mktemp("pair") / "m")


def rename_ordinary(said: dict[str, Any]) -> None:
    vocab = said["model"]["vocab"]
    vocab["Q!"] = vocab.pop("Q")


def swap_names(said: dict[str, Any]) -> None:
    vocab = said["model"]["vocab"]
    vocab["Q"], vocab["R"] = vocab["R"], vocab["Q"]


def rename_special(said: dict[str, Any]) -> None:
    vocab = said["model"]["vocab"]
    vocab["<end>"] = vocab.pop("<|endoftext|>")
    said["added_tokens"][0]["content"] = "<end>"


def make_ordinary(said: dict[str, Any]) -> None:
    rename_special(said)
    said["added_tokens"] = []


def add(said: dict[str, Any]) -> None:
    more = said["added_tokens"][0] | {"id": 272, "content": "<think>", "special": False}
    said["added_tokens"].append(more)


def split_otherwise(said: dict[str, Any]) -> None:
    said["model"]["merges"].reverse()


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (
            rename_ordinary,
            r"different tokenizers .of 272 .*: token \d+ is 'Q!' to the draft and 'Q' to",
        ),
        (swap_names, r"token \d+ is 'R' to the draft and 'Q' to the target"),
        (make_ordinary, "token 0 is '<end>' to the draft and '<.endoftext.>' to the target"),
        (rename_special, None),
        (add, None),
        (split_otherwise, None),
    ],
)
def test_which_tokens_may_differ(
    pair: Path, tmp_path: Path, change: Any, verdict: str | None
) -> None:
    model = specjax.load(pair)
    other = edited(pair, tmp_path / "other", change)
    (other / "tokenizer_config.json").unlink()
    draft = dataclasses.replace(model, name="other", tokenizer=load_tokenizer(other))
    if verdict is None:
        for a, b in ((model, draft), (draft, model)):
            with pytest.warns(VocabularyWarning, match="agree in all ordinary tokens"):
                check_same_tokens(a, b)
    else:
        with pytest.raises(ValueError, match=verdict) as error:
            check_same_tokens(model, draft)
        assert "\n" not in str(error.value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_same_tokens(model, dataclasses.replace(model, name="same"))


def padded(source: Path, directory: Path, rows: int) -> Path:
    """The same model with another number of rows in its two tables."""
    shutil.copytree(source, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))
    tensors = load_file(directory / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        # Rows of padding that would win if they were ever looked at.
        more = 3 * np.abs(tensors[name]).max() * np.sign(tensors[name][: max(rows - 272, 0)])
        tensors[name] = np.concatenate([tensors[name], more])[:rows].astype(np.float32)
    save_file(tensors, directory / "model.safetensors")
    return directory


def test_padding(pair: Path, tmp_path: Path) -> None:
    """A draft of more or fewer rows guesses as if it had the target's, and texts do not change."""
    target = specjax.load(padded(pair, tmp_path / "t", 280))
    prompts, options = [[1, 2, 3], [277]], {"max_new_tokens": 24, "seed": 3}
    plain = specjax.generate(target, None, prompts, **options)
    for rows, kind in ((272, "sampled"), (288, "one_hot")):
        draft = specjax.load(padded(pair, tmp_path / f"d{rows}", rows))
        with pytest.warns(VocabularyWarning, match=f"{rows} rows are padded to the target's 280"):
            out = specjax.generate(target, LM(draft, 3, kind), prompts, **options)
        assert out.tokens == plain.tokens


def test_padding_is_known_by_the_tokenizers(pair: Path, tmp_path: Path) -> None:
    model = specjax.load(pair)
    small = specjax.load(write_tiny(tmp_path / "small", text=TEXT, vocab_size=270))
    with pytest.raises(ValueError, match=r"token 270 is nothing to the draft and '"):
        check_same_tokens(model, small)
    cut = specjax.load(padded(pair, tmp_path / "cut", 271))
    with pytest.raises(ValueError, match=r"token 271, '.*', of m is none of cut's"):
        check_same_tokens(model, cut)
    mute = dataclasses.replace(cut, tokenizer=None)
    with pytest.raises(ValueError, match="vocabulary of 271 tokens and target m one of 272"):
        check_same_tokens(model, mute)
