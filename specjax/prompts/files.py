"""Prompt files: one prompt a line, as text or in JSON objects. docs/inputs.md has the table."""

from __future__ import annotations

import dataclasses
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specjax.core.files import parse_json, read_bytes

CONVERSATION = '{"messages": [{"role": "user", "content": "..."}]}'
EXAMPLE = '{"prompt": "..."} or ' + CONVERSATION
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class FilePrompt:
    """One line: text, or a conversation."""

    where: str  # file and line
    text: str = ""
    messages: Sequence[Mapping[str, Any]] | None = None  # None: it is text
    tools: Sequence[Mapping[str, Any]] | None = None


def read_prompts(path: str | Path, *, replace_bad_text: bool = False) -> list[FilePrompt]:
    """Reads ``.txt``, one prompt a line, or ``.jsonl``, objects with ``prompt`` or ``messages``.

    ``tools`` are read beside ``messages``; other fields of the objects are the file's own business.

    Args:
      path: the file.
      replace_bad_text: whether bytes that are not UTF-8, and halves of surrogate pairs, become
        U+FFFD instead of being refused.

    Raises:
      ValueError: in one line, naming the line, on anything else.
      OSError: if the file cannot be read.
    """
    path = Path(path).expanduser()
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{path}: a prompt file is .txt (a prompt a line) or .jsonl (objects).")
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such prompt file; check the path.") from None
    # Not `splitlines`: a prompt may hold U+2028 and the like.
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if not lines:
        raise ValueError(f"{path} is empty; write at least one prompt into it.")
    prompts = []
    for i, line in enumerate(lines, 1):
        where = f"{path}, line {i}"
        text = _decode(line, where, replace_bad_text)
        if path.suffix == ".txt":
            prompts.append(FilePrompt(where, _read_line(text, where)))
        else:
            prompts.append(_read_object(text, where, replace_bad_text))
    return prompts


def _decode(line: bytes, where: str, replace: bool) -> str:
    try:
        return line.decode("utf-8", errors="replace" if replace else "strict")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: not UTF-8 at byte {error.start} of the line; convert the file "
            "(--config.replace_bad_text puts U+FFFD there)."
        ) from None


def _read_line(line: str, where: str) -> str:
    """A line of text: the prompt itself."""
    prompt = line.removesuffix("\r")
    if not prompt.strip():
        raise ValueError(f"{where}: empty; remove the line (a .jsonl file can hold any prompt).")
    return prompt


def _read_object(line: str, where: str, replace: bool) -> FilePrompt:
    """A line of JSON: text to continue, or a conversation to answer."""
    if not line.strip():
        raise ValueError(f"{where}: empty, not JSON; remove the line.")
    value = parse_json(line, where)
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not an object; write {EXAMPLE}.")
    given = [name for name in ("prompt", "messages") if value.get(name) is not None]
    if len(given) != 1:
        what = 'both "prompt" and "messages"' if given else 'no field "prompt" or "messages"'
        raise ValueError(f"{where}: {what}; write {EXAMPLE}.")
    try:
        read = {
            name: whole_text(value.get(name), f"{where}, {name}", replace)
            for name in (*given, "tools")
        }
    except RecursionError:
        raise ValueError(f"{where}: JSON nested too deeply to be meant.") from None
    if given == ["prompt"]:
        if not isinstance(read["prompt"], str):
            told = reprlib.repr(read["prompt"])
            hint = "; a conversation is " + CONVERSATION if isinstance(read["prompt"], list) else ""
            raise ValueError(f"{where}: prompt is {told}, not text in quotes{hint}.")
        if read["tools"]:
            raise ValueError(f'{where}: tools are for "messages", and this is a "prompt".')
        return FilePrompt(where, read["prompt"])
    for name in ("messages", "tools"):
        entries = read[name] if name == "messages" else read[name] or []
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise ValueError(f"{where}: {name} is not a list of objects.")
    messages = read["messages"]
    if not messages:
        raise ValueError(f"{where}: messages is empty; write {EXAMPLE}.")
    for i, message in enumerate(messages, 1):
        if not isinstance(message.get("role"), str):
            raise ValueError(f'{where}, message {i}: no "role" in words, such as "user".')
    return FilePrompt(where, messages=messages, tools=read["tools"] or None)


def whole_text(value: Any, where: str, replace: bool = False) -> Any:
    """A JSON value without halves of surrogate pairs, which JSON can spell and text cannot hold.

    Raises:
      ValueError: in one line that begins with ``where``, unless they are to be replaced.
    """
    if isinstance(value, str):
        found = _SURROGATE.search(value)
        if found is None:
            return value
        if replace:
            return _SURROGATE.sub("\ufffd", value)
        raise ValueError(
            f"{where}: \\u{ord(found[0]):04x} is half of a surrogate pair, which no text can hold; "
            "write the whole character (--config.replace_bad_text of generate puts U+FFFD there)."
        )
    if isinstance(value, list):
        return [whole_text(entry, where, replace) for entry in value]
    if isinstance(value, dict):
        pairs = ([whole_text(part, where, replace) for part in pair] for pair in value.items())
        return {key: entry for key, entry in pairs}
    return value
