"""What may be handed over as a prompt, and the ids that it becomes."""

from __future__ import annotations

import collections
import json
import re
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from test_bad_input import complain
from tiny_checkpoint import write_tiny

import specjax
from specjax.prompts.files import read_prompts
from specjax.prompts.forms import split
from specjax.prompts.ids import PlainTextWarning, conversation_ids, prompt_ids

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if tools is not none %}[tools]{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}[{{ mood | default('assistant') }}]{% endif %}"
)
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: Any) -> specjax.Model:
    """A target without a template."""
    return specjax.load(write_tiny(tmp_path_factory.mktemp("plain") / "plain"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: Any) -> specjax.Model:
    """A target with one."""
    directory = write_tiny(tmp_path_factory.mktemp("chat") / "chat")
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return specjax.load(directory)


class Foreign:
    """What PyTorch's tensors offer, and no more."""

    def __init__(self, value: Any, dtype: str):
        self._value, self.dtype = np.asarray(value), dtype
        self.shape = self._value.shape

    def detach(self) -> Foreign:
        return self

    def cpu(self) -> np.ndarray:
        return self._value


def encoded(ids: Any, mask: Any = None, **more: Any) -> collections.UserDict:
    """As Transformers' BatchEncoding, which is no dict."""
    return collections.UserDict({"input_ids": ids, "attention_mask": mask, **more})


FORMS: dict[str, tuple[Any, list[list[int]]]] = {
    "ids": ([1, 2, 3], [[1, 2, 3]]),
    "tuple": ((1, 2, 3), [[1, 2, 3]]),
    "range": (range(1, 4), [[1, 2, 3]]),
    "NumPy": (np.array([1, 2, 3], np.uint8), [[1, 2, 3]]),
    "NumPy, two dimensions": (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    "JAX": (jnp.array([1, 2, 3]), [[1, 2, 3]]),
    "JAX, two dimensions": (jnp.array([[1, 2, 3]]), [[1, 2, 3]]),
    "PyTorch": (Foreign([[1, 2, 3]], "torch.int64"), [[1, 2, 3]]),
    "scalars of JAX": (list(jnp.array([1, 2])), [[1, 2]]),
    "ragged": ([[1, 2], np.array([3]), jnp.array([4, 5]), (6,)], [[1, 2], [3], [4, 5], [6]]),
    "ragged, as an array": (np.array([[1, 2], [3]], dtype=object), [[1, 2], [3]]),
    "mapping": ({"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1]}, [[1, 2, 3]]),
    "without a mask": ({"input_ids": [1, 2, 3]}, [[1, 2, 3]]),
    "padded left": (
        encoded([[0, 0, 1, 2], [1, 2, 3, 4]], [[0, 0, 1, 1], [1, 1, 1, 1]]),
        [[1, 2], [1, 2, 3, 4]],
    ),
    "padded right": (
        encoded(np.array([[1, 2, 0], [3, 0, 0]]), np.array([[True, True, False], [1, 0, 0]])),
        [[1, 2], [3]],
    ),
    "several encodings": (
        [encoded(jnp.array([[1, 2]]), jnp.array([[0, 1]])), encoded([3], token_type_ids=[0]), [4]],
        [[2], [3], [4]],
    ),
}


@pytest.mark.parametrize("case", FORMS)
def test_forms(plain: specjax.Model, case: str) -> None:
    given, rows = FORMS[case]
    assert prompt_ids(plain, given) == rows
    assert all(type(i) is int for row in prompt_ids(plain, given) for i in row)


def test_text_and_mixtures(plain: specjax.Model, chat: specjax.Model) -> None:
    assert plain.tokenizer is not None
    ids = plain.tokenizer.encode("def")
    both = np.array(["def", "d"])
    assert prompt_ids(plain, "def") == prompt_ids(plain, np.str_("def")) == [ids]
    assert prompt_ids(plain, both) == [ids, plain.tokenizer.encode("d")]
    inner = tokenizers.Tokenizer.from_file(str(plain.directory / "tokenizer.json"))  # type: ignore
    assert prompt_ids(plain, inner.encode("def")) == [ids]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlainTextWarning)
        mixed = prompt_ids(chat, ["def", HI, [1, 2], np.array([[3], [4]]), encoded([5])])
    assert mixed == [ids, conversation_ids(chat, HI), [1, 2], [3], [4], [5]]
    out = [specjax.generate(plain, None, p, max_new_tokens=3) for p in (ids, jnp.array([ids]))]
    assert out[0].tokens == out[1].tokens and out[1].prompt_tokens == [ids]


REFUSED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "bytes": (b"def", ("Prompt 0 is a bytes",)),
    "bytes in a list": (["a", b"def"], ("Prompt 1 is a bytes",)),
    "bytearray": (bytearray(b"a"), ("bytearray",)),
    "bytes in an array": (np.array([b"a"]), (r"\|S1",)),
    "None": (None, ("Prompt 0 is None",)),
    "a number": (5, ("an int",)),
    "a set": ({1, 2}, ("a set",)),
    "a generator": ((i for i in (1, 2)), ("a generator",)),
    "a path": (Path("a"), ("Path",)),
    "nothing": ((), ("No prompts", "at least one")),
    "floats": (np.array([1.0, 2.0]), ("float64", "whole numbers")),
    "floats of JAX": (jnp.array([1.0], jnp.bfloat16), ("bfloat16",)),
    "floats of PyTorch": (Foreign([1.0], "torch.float16"), ("of float16",)),
    "booleans": (np.array([True, False]), ("of bool",)),
    "a boolean": ([[1], [2, True]], ("Prompt 1 holds True",)),
    "no dimension": (np.array(3), ("0 dimensions",)),
    "three dimensions": (np.zeros((1, 1, 1), int), ("3 dimensions",)),
    "masked": (np.ma.array([1, 2], mask=[False, True]), ("masked entries",)),
    "lists too deep": ([[[1, 2]]], ("Prompt 0 holds",)),
    "text too deep": ([["a"]], ("Prompt 0 holds 'a'",)),
    "no input_ids": ({"text": "a"}, ("without input_ids", "text")),
    "an empty mapping": ([[1], {}], ("Prompt 1", "without input_ids")),
    "pixels": (encoded([1], pixel_values=[0.5]), ("pixel_values",)),
    "text as ids": (encoded("abc"), ("a str",)),
    "a hole": (encoded([1, 2, 3], [1, 0, 1]), ("hole at 1",)),
    "a short mask": (encoded([1, 2, 3], [1, 1]), (r"\[3\]", r"\[2\]")),
    "one mask for two": (encoded([[1, 2], [3, 4]], [1, 1]), (r"\[2, 2\]", r"\[2\]")),
    "a mask of nothing": (encoded([[1], [2]], [[1], [0]]), ("Prompt 1 is empty",)),
    "a mask of weights": (encoded([1, 2], [1, 0.5]), ("attention_mask holds 0.5",)),
    "one message": (HI[0], ("single message", "list")),
    "a message in a list": ([*HI, "b"], ("Prompt 0 is a single message",)),
    "a surrogate": (["a", "ab\ud83dc"], ("Prompt 1: character 2", r"U\+D83D")),
    "a surrogate in a message": ([{"role": "user", "content": "\udc00"}], ("message 0",)),
    "a role": ([{"role": 5, "content": "a"}], ("role of message 0 is 5",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(chat: specjax.Model, case: str) -> None:
    given, words = REFUSED[case]
    complain(lambda: prompt_ids(chat, given), *words)


@pytest.mark.parametrize(
    ("name", "message"), [(1, "has the name 1: names are strings"), ("tools", "cannot set 'tools'")]
)
def test_names_that_no_template_is_given(chat: specjax.Model, name: Any, message: str) -> None:
    complain(lambda: prompt_ids(chat, HI, template_args={name: 2}), message)


def test_conversations(plain: specjax.Model, chat: specjax.Model) -> None:
    assert chat.tokenizer is not None

    def ids(text: str) -> list[int]:
        return chat.tokenizer.encode(text, add_bos=False)  # type: ignore[union-attr]

    begun = ids("<|endoftext|>[user]hi[assistant]")
    assert begun[0] == 0  # the text of a special token is that token
    assert conversation_ids(chat, HI) == begun
    tools = [{"name": "clock"}]
    out = specjax.generate(
        chat, None, [HI, HI], template_args={"mood": "me"}, tools=tools, max_new_tokens=2
    )
    with_tools = ids("<|endoftext|>[user]hi[tools]" + json.dumps(tools) + "[me]")
    assert out.prompt_tokens == [with_tools] * 2
    (last,) = list(specjax.stream(chat, None, HI, max_new_tokens=1))
    assert last.trace is not None and list(last.trace.texts[0].prompt_tokens) == begun
    specjax.check(chat, None, HI, template_args={"mood": "me"})

    complain(lambda: prompt_ids(plain, HI), "Prompt 0 is a conversation", "no chat template")
    complain(lambda: prompt_ids(chat, [1], tools=tools), "tools is for conversations")
    complain(lambda: prompt_ids(chat, [1], template_args={"a": 1}), "template_args is for")
    complain(lambda: prompt_ids(chat, HI, template_args={"messages": 1}), "messages", "other means")
    complain(lambda: prompt_ids(chat, HI, template_args=[1]), "template_args is a list")
    complain(lambda: prompt_ids(chat, HI, tools=["clock"]), "tools is not a list of JSON schemas")


def test_plain_text_for_a_chat_target_is_noted_once(tmp_path: Path) -> None:
    directory = write_tiny(tmp_path / "chat")
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    target = specjax.load(directory)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        prompt_ids(target, ["<|endoftext|>[user]", HI, [1]])
        assert not said
        specjax.check(target, None, ["def", "def"], max_new_tokens=1)
        prompt_ids(target, "def")
    (only,) = said
    assert only.category is PlainTextWarning and "Prompt 0 is plain text" in str(only.message)
    assert only.filename == __file__  # the user's own line, not one of the package
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompt_ids(specjax.load(write_tiny(tmp_path / "plain")), "def")


def test_what_the_template_does_not_read_is_noted_once(tmp_path: Path) -> None:
    directory = write_tiny(tmp_path / "chat")
    (directory / "chat_template.jinja").write_text(re.sub("{% if tools .*?endif %}", "", TEMPLATE))
    target = specjax.load(directory)
    said = [{**HI[0], "name": "Ann", "audio": None}]
    args = {"moood": "angry", "x": 1}
    with pytest.warns(UserWarning) as caught:
        ids = conversation_ids(target, said, template_args=args, tools=[{"name": "clock"}])
    (warning,) = caught
    assert "does not read moood (did you mean mood?), x, tools, name of a message" in str(
        warning.message
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert conversation_ids(target, said, template_args=args) == ids
        conversation_ids(target, HI, template_args={"mood": "angry"})


def test_conversations_of_the_references(shared: Path) -> None:
    """The ids of Transformers' apply_chat_template(.., add_generation_prompt=True), written out."""
    for name, ids in CONVERSATIONS.items():
        target = specjax.load(shared / "parity" / name)
        assert prompt_ids(target, HI) == [ids]


CONVERSATIONS = {
    "llama3": [
        *(346, 349, 84, 82, 68, 81, 350, 198, 198, 71, 72, 347, 349, 64, 82, 82, 72, 82),
        *(83, 268, 83, 350, 198, 198),
    ],
    "qwen3": [
        *(348, 84, 82, 68, 81, 198, 71, 72, 347, 198, 348, 64, 82, 82, 72, 82, 83, 268),
        *(83, 198),
    ],
}


def test_options_as_arrays(plain: specjax.Model) -> None:
    """One a prompt, or without dimensions one for all."""
    prompts, size = ["def", "area"], {"max_new_tokens": 6}

    def tokens(**options: Any) -> list[list[int]]:
        return specjax.generate(plain, "ngram:2", prompts, **{**size, **options}).tokens

    said = tokens(temperature=[0.0, 0.8], seed=[1, 2], stop_token_ids=[[3], [4]], top_k=[5, 6])
    for kind in (np.array, jnp.array, tuple):
        options = {"temperature": kind([0.0, 0.8]), "seed": kind([1, 2]), "top_k": kind([5, 6])}
        assert tokens(**options, stop_token_ids=kind([[3], [4]])) == said
    one = tokens(temperature=0.5, seed=7, stop_token_ids=[3], max_new_tokens=5)
    alone = {"temperature": np.array(0.5), "seed": jnp.array(7), "max_new_tokens": np.int64(5)}
    assert tokens(**alone, stop_token_ids=np.array(3)) == one
    assert tokens(logit_bias={5: np.array(1e4)}) == tokens(logit_bias=[{5: 1e4}, {5: 1e4}])


def test_an_array_of_objects_reads_as_its_list() -> None:
    messages = np.array([{"role": "user", "content": "hi"}], dtype=object)
    assert split(np.array([1, 2], dtype=object)) == [[1, 2]]
    assert split(np.array([[1, 2], [3]], dtype=object)) == [[1, 2], [3]]
    assert split(np.array(["a", "b"], dtype=object)) == ["a", "b"]
    assert split(messages) == [list(messages)]


def test_tools_nested_too_deeply_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    nested = '[{"a":' * 450 + "1" + "}]" * 450
    path.write_text('{"messages": [{"role": "user", "content": "a"}], "tools": ' + nested + "}")
    with pytest.raises(ValueError, match=r"line 1: JSON nested too deeply"):
        read_prompts(path)
