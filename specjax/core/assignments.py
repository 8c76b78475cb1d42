"""NAME=VALUE as people write it into a flag or a field of a config."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from typing import Any

_DECODER = json.JSONDecoder()


def read_assignments(text: str, where: str) -> dict[str, Any]:
    """``a=[1,2],b=false,c=some words`` as {"a": [1, 2], "b": False, "c": "some words"}.

    Values are JSON where they are JSON, and text otherwise. Raises ValueError as `assign` does.
    """
    found, place = [], 0
    while place < len(text):
        equals = text.find("=", place)
        begin = len(text) if equals < 0 else equals + 1
        try:  # a value of JSON may hold commas itself
            end = _DECODER.raw_decode(text, begin)[1]
        except (ValueError, RecursionError):
            end = begin
        if text[end : end + 1] not in ("", ","):
            end = begin
        comma = text.find(",", end)
        end = len(text) if comma < 0 else comma
        found.append(text[place:end])
        place = end + 1
    return assign(found, where)


def assign(texts: Iterable[str], where: str) -> dict[str, Any]:
    """``("top_k=40",)`` as {"top_k": 40}.

    Raises:
      ValueError: in one line that begins with ``where``, on what is not NAME=VALUE, or twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise ValueError(f"{where} holds {text!r}: write NAME=VALUE.")
        if name in found:
            raise ValueError(f"{where} sets {name} twice.")
        found[name] = read_value(value.strip())
    return found


def read_value(text: str) -> Any:
    """What ``text`` is in JSON or else in Python (False, 'word'); the text itself if neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return text
