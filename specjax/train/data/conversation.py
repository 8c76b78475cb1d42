"""The conversation of a data line, in the words of chat templates. docs/inputs.md has the table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from typing import Any

from specjax.checkpoint.messages import REASONING, Message

# Of ShareGPT's "from", and the same names as roles.
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "system": "system",
    "tool": "tool",
}
# Of "from" alone: templates know some of them as roles.
_FROM = {
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
_CALLS = ("function_call", "tool_call")
# Roles of some templates; whether they are written at all is tried out (`jsonl.Reader`).
_OTHER_ROLES = ("developer", "function", "ipython", "observation")
_LISTS = ("messages", "conversations", "conversation")
_ANSWERS = ("response", "completion")
_TEXT_PARTS = ("text", "input_text", "output_text")
_LABELS = ("role", "content", "name", "id", "tool_call_id", "weight")  # say nothing by themselves


@dataclasses.dataclass(frozen=True)
class Conversation:
    """What a line holds.

    Attributes:
      messages: in order, with all their fields but ``weight``.
      supervised: of each, whether it is a response to learn from.
      places: of each, what it is called in messages to the user.
      fields: what the line has besides, such as ``tools``; None and empty ones are left out.
    """

    messages: list[Message]
    supervised: list[bool]
    places: list[str]
    fields: dict[str, Any]


def read_messages(value: Mapping[str, Any], where: str) -> list[Message]:
    """The messages of a line. Raises as `read_conversation`."""
    return read_conversation(value, where).messages


def read_conversation(
    value: Mapping[str, Any],
    where: str,
    *,
    roles: Collection[str] = (),
    ignore: Collection[str] = (),
) -> Conversation:
    """The conversation of one line.

    Args:
      value: the line's object.
      where: begins the messages.
      roles: what else may be a role, such as the texts that the template compares with.
      ignore: fields, of the line and of messages, that are left out.

    Raises:
      ValueError: naming line and message, on what cannot be read.
    """
    fields = {k: v for k, v in value.items() if k not in ignore and not _empty(v)}
    name = next((n for n in _LISTS if n in fields), None)
    answer = next((n for n in _ANSWERS if n in value), None)
    if name or any(n in value for n in _LISTS):
        name = name or next(n for n in _LISTS if n in value)
        said = [(m, True) for m in _listed(fields.pop(name, []), where, name)]
        places = [f"message {i + 1}" for i in range(len(said))]
    elif answer and "prompt" in value:
        asked = _turns(fields.pop("prompt", ""), "user", where, "prompt")
        told = _turns(fields.pop(answer, ""), "assistant", where, answer)
        # What the prompt holds is context, earlier responses in it too.
        said = [(m, False) for m in asked] + [(m, True) for m in told]
        places = ["prompt"] * len(asked) + [answer] * len(told)
    else:
        raise _of_no_kind(value, where)
    read = [
        _message(m, f"{where}, {place}", roles=roles, ignore=ignore)
        for (m, _), place in zip(said, places, strict=True)
    ]
    messages = [message for message, _ in read]
    supervised = [own and new for (_, own), (_, new) in zip(read, said, strict=True)]
    system = fields.pop("system", None)
    if system is not None:
        if not isinstance(system, str):
            raise ValueError(f"{where}: system is {type(system).__name__}, not text.")
        if messages[0]["role"] == "system":
            raise ValueError(f'{where}: both "system" and a system message; leave one out.')
        messages.insert(0, {"role": "system", "content": system})
        supervised.insert(0, False)
        places.insert(0, "system")
    if not any(m["role"] == "assistant" for m in messages):
        raise ValueError(f"{where}: no response of the assistant, so nothing to train on.")
    if "tools" in fields and not _empty(tools := _tools(fields.pop("tools"), where)):
        fields["tools"] = tools
    return Conversation(messages, supervised, places, fields)


def check_kind(value: Mapping[str, Any], where: str) -> None:
    """Raises ValueError, naming the line, on an object that is no conversation of any kind."""
    answered = "prompt" in value and any(n in value for n in _ANSWERS)
    if not answered and not any(n in value for n in _LISTS):
        raise _of_no_kind(value, where)


def _of_no_kind(value: Mapping[str, Any], where: str) -> ValueError:
    names = ", ".join(repr(k) for k in value) or "nothing"
    return ValueError(
        f'{where}: neither "messages", "conversations", "prompt" and "response" (or '
        f'"completion"), nor "tokens"; it has {names}.'
    )


def _empty(value: Any) -> bool:
    """Tables fill the fields that a row does not have."""
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def _listed(said: Any, where: str, name: str) -> list[Any]:
    if not isinstance(said, list) or not said:
        raise ValueError(f"{where}: {name} must be a list of messages, not empty.")
    return said


def _turns(said: Any, role: str, where: str, name: str) -> list[Any]:
    """What a text, or a list of messages, is as messages."""
    if isinstance(said, list) and said and isinstance(said[0], dict) and "type" not in said[0]:
        return said
    return [{"role": role, "content": said}]


def _tools(tools: Any, where: str) -> list[Any]:
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise ValueError(f"{where}: tools is a text that is not JSON.") from None
    if tools is None:  # as the text "null"
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"{where}: tools must be a list of objects, or the JSON text of one.")
    return tools


def _message(
    value: Any, where: str, *, roles: Collection[str], ignore: Collection[str]
) -> tuple[Message, bool]:
    """The message, and whether it is a response to learn from."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not an object.")
    fields = {k: v for k, v in value.items() if k not in ignore or k in ("role", "from")}
    said = fields.pop("role") if "role" in fields else None
    role = said
    if said is None:
        said = fields.pop("from", None)
        role = _FROM.get(said, said) if isinstance(said, str) else said
    if not isinstance(role, str) or role not in (*_ROLES, *_OTHER_ROLES, *roles):
        known = ", ".join(sorted({*_ROLES, *_FROM, *_OTHER_ROLES}))
        raise ValueError(f"{where}: role {said!r} is not one of {known}.")
    role = _ROLES.get(role, role)
    content = fields.pop("content") if "content" in fields else fields.pop("value", None)
    weight = _weight(fields.pop("weight", None), role, where)
    message: Message = {"role": role, "content": _content(content, where, ignore)}
    _check_reasoning(fields, where)
    if said in _CALLS and role == "assistant":
        message |= {"content": None, "tool_calls": _calls(content, where)}
    message |= fields
    said_in_parts = isinstance(message["content"], list)
    words = "".join(p["text"] for p in message["content"]) if said_in_parts else content
    silent = not words or (isinstance(words, str) and not words.strip())
    if role == "assistant" and weight != 0 and silent and not _substance(message):
        raise ValueError(f"{where}: the response is empty; remove the conversation.")
    if role != "assistant" and content is None:
        raise ValueError(f"{where}: no content.")
    return message, role == "assistant" and weight != 0


def _substance(message: Message) -> bool:
    """Whether a message says anything besides its content."""
    return any(not _empty(v) for k, v in message.items() if k not in _LABELS)


def _weight(weight: Any, role: str, where: str) -> int | None:
    if weight is None:
        return None
    if isinstance(weight, bool) or weight not in (0, 1):
        raise ValueError(
            f"{where}: weight {weight!r} is neither 0 (in the text, not learned from) nor 1."
        )
    if weight == 1 and role != "assistant":
        raise ValueError(f"{where}: weight 1 of role {role!r}, but only responses are learned.")
    return int(weight)


def _check_reasoning(fields: Mapping[str, Any], where: str) -> None:
    """Templates pass over what is not a text, and take one of several."""
    given = {name: fields[name] for name in REASONING if not _empty(fields.get(name))}
    for name, text in given.items():
        if not isinstance(text, str):
            raise ValueError(f"{where}: {name} is {type(text).__name__}, not text.")
    if len(set(given.values())) > 1:
        raise ValueError(f"{where}: {' and '.join(given)} differ; leave all but one out.")


def _content(content: Any, where: str, ignore: Collection[str]) -> Any:
    """A text, a list of texts, or None."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        kind = type(content).__name__
        raise ValueError(f"{where}: the content is {kind}, not text (an object: write its JSON).")
    parts = []
    for part in content:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
        if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
            raise ValueError(f"{where}: a content part of type {kind!r}; only text can be read.")
        for name in part:
            if name not in ("type", "text", *ignore) and not _empty(part[name]):
                raise ValueError(
                    f"{where}: nobody reads {name} of a content part; remove it, or leave it out "
                    f"with --config.data.ignore='(\"{name}\",)'."
                )
        parts.append({"type": "text", "text": part["text"]})
    return parts


def _calls(content: Any, where: str) -> list[dict[str, Any]]:
    """ShareGPT's function_call, {"name": .., "arguments": ..} or several as JSON text."""
    try:
        calls = json.loads(content) if isinstance(content, str) else content
    except (ValueError, RecursionError):
        raise ValueError(f"{where}: function_call is not JSON.") from None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(c, dict) and isinstance(c.get("name"), str) for c in calls):
        raise ValueError(f'{where}: function_call has no {{"name": .., "arguments": ..}}.')
    return [{"type": "function", "function": call} for call in calls]
