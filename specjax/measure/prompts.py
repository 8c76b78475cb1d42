"""Prompt files: one prompt a line, as text or in JSON objects."""

from __future__ import annotations

import json
from pathlib import Path


def read_prompts(path: str | Path) -> list[str]:
    """Reads ``.txt``, one prompt a line, or ``.jsonl``, objects with a ``prompt`` field.

    Other fields of the objects are the file's own business and are not read.

    Raises:
      ValueError: in one line, naming the line, on anything else.
      OSError: if the file cannot be read.
    """
    path = Path(path).expanduser()
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{path}: a prompt file is .txt (a prompt a line) or .jsonl (objects).")
    try:
        # Not `splitlines`: a prompt may hold U+2028 and the like.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such prompt file; check the path.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; convert the file.") from None
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise ValueError(f"{path} is empty; write at least one prompt into it.")
    read = read_object if path.suffix == ".jsonl" else read_line
    return [read(line, f"{path}, line {i + 1}") for i, line in enumerate(lines)]


def read_line(line: str, where: str) -> str:
    """A line of text: the prompt itself."""
    prompt = line.removesuffix("\r")
    if not prompt.strip():
        raise ValueError(f"{where}: empty; remove the line (a .jsonl file can hold any prompt).")
    return prompt


def read_object(line: str, where: str) -> str:
    """A line of JSON: the ``prompt`` of the object."""
    try:
        value = json.loads(line)
    except ValueError:
        raise ValueError(f'{where}: not JSON; write {{"prompt": "..."}}.') from None
    if not isinstance(value, dict) or "prompt" not in value:
        raise ValueError(f'{where}: no object with a field "prompt"; write {{"prompt": "..."}}.')
    if not isinstance(value["prompt"], str):
        raise ValueError(f"{where}: prompt is {value['prompt']!r}, not text in quotes.")
    return value["prompt"]
