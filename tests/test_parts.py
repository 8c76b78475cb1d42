"""A file that is read in blocks, one a process, becomes what it becomes when one reads it."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from tiny_checkpoint import END, write_tiny

from specjax.checkpoint.chat import ChatTemplate
from specjax.checkpoint.tokenizer import load_tokenizer
from specjax.train.data.jsonl import Block, Lines, Reading, read_block, read_rows
from specjax.train.data.lines import read_lines
from specjax.train.data.parts import blocks_of, pack, unpack, whole_of
from specjax.train.data.text import Speech

# Thoughts are written in the last response alone, so earlier ones are rows of their own; the day is
# written; and a tool's message is written where a line has documents.
SOURCE = (
    "{{ strftime_now('%d') }}{% for m in messages %}{% if m.content and "
    "(m.role != 'tool' or documents) %}[{{ m.role }}]{% if m.role == 'assistant' and loop.last %}"
    "<thought>{% endif %}{{ m.content }}{{ '' and m.name }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def talk(*said: str, **more: object) -> bytes:
    """Messages such as ``tool:x``; without a role, of user and assistant in turn."""
    messages = []
    for i, text in enumerate(said):
        role, _, content = text.rpartition(":")
        role = role or ("user", "assistant")[i % 2]
        messages.append({"role": role, "content": content, "name": "n"})
    return json.dumps({"messages": messages, **more}, ensure_ascii=False).encode()


GOOD = talk("a", "b")
LONG = talk("q" * 190, "behind seq_len")
TOKENS = b'{"tokens": [5, 6, 7, 8], "prompt_tokens": 2}'
SILENT = talk("q", "tool:x", "user:y", "a")
WRITTEN = talk("q", "tool:x", "user:y", "a", documents=[1])
BAD = [
    b"{",
    b"[1]",
    b'{"prompt": "\\ud83d", "response": "x"}',
    b"\xff\xfe",
    talk("alone"),
    b"nul",
    b"no",
]
FILES = {
    "mixed": [
        *(b"\xef\xbb\xbf" + GOOD, b"", talk("a", "b", "c", "d", "e", "f"), TOKENS, LONG, b"  \r"),
        *(talk("größer 😀 \u2028 語", "ответ"), *BAD, talk("x", "y" * 40, "z", "w")),
        *(GOOD, LONG, TOKENS),
    ],
    "bad last": [GOOD] * 7 + [BAD[1]],
    "nothing but bad": BAD[:3],
    "behind seq_len": [LONG, LONG],
    "one": [GOOD],
    "none": [b" ", b""],
    "a role that was seen": [WRITTEN, GOOD, GOOD, SILENT, GOOD, SILENT],
    "a role that was not": [GOOD, SILENT, GOOD, WRITTEN, SILENT, GOOD],
}  # fmt: skip


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Speech:
    directory = write_tiny(tmp_path_factory.mktemp("parts") / "model")
    return Speech(load_tokenizer(directory), 272, separator=0, stop_token_ids=(0,))


def told(read) -> object:
    """All that is read, in values that compare; or what is said of it."""
    try:
        lines: Lines = read()
    except ValueError as error:
        return str(error)
    values = lambda rows: [
        (r.tokens.tolist(), r.supervised.tolist(), r.tokens.dtype, r.supervised.dtype) for r in rows
    ]
    found = [(x.num, values(x.rows), values(x.undated), x.digest) for x in lines.lines]
    return found, lines.notes, len(lines)


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("name", FILES)
def test_blocks_become_what_the_file_does(
    name: str, policy: str, speech: Speech, tmp_path: Path
) -> None:
    path, reading = tmp_path / "a.jsonl", Reading(bad_lines=policy)
    path.write_bytes(b"\n".join(FILES[name]))
    template = lambda: ChatTemplate(SOURCE, {"eos_token": END}, where="T")
    how = {"speech": speech, "template": template, "seq_len": 150, "reading": reading}
    expected = told(lambda: read_rows(path, **how))
    raw, again = list(read_lines(path)), []

    def read_all() -> Block:
        again.append(1)
        return read_block(path, raw, **how)

    def read_parts(num: int) -> Lines:
        parts = blocks_of(raw, [len(line) for _, line in raw], num)
        assert len(parts) == num and [line for part in parts for line in part] == raw
        blocks = [unpack(pack(read_block(path, part, **how))) for part in parts]
        return whole_of(blocks, read_all).whole(path, 150)

    for num in (1, 2, 3, 5):
        assert told(functools.partial(read_parts, num)) == expected, num
    # The whole file is read again where a block may not say what the file would.
    assert bool(again) == name.startswith("a role"), again
    if name == "mixed":
        assert isinstance(expected, str) == (policy == "stop")
    if name == "mixed" and policy == "skip":
        found, notes, num_rows = expected
        assert num_rows == 10 and [len(rows) for _, rows, _, _ in found] == [1, 3, 1, 1, 2, 1, 1]
        assert len(notes) == 3 and "; and 2 more" in notes[0] and "not looked at" in notes[1]
    if name == "a role that was seen":
        assert len(expected[0]) == 6
    if name == "a role that was not":
        assert "'tool'" in (expected if policy == "stop" else expected[1][0])
