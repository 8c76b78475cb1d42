"""The arguments of tool calls: an object, or its JSON text, whichever a template writes right.

OpenAI's formats hold a text. Most templates write an object, and a text given to them is quoted
once more, or fails; some, such as DeepSeek-R1's, take nothing but a text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

_NAME = "a5f0 probe"
_TEXT = f'{{"{_NAME}": 7}}'


def wanted(render: Callable[[list[dict[str, Any]]], str]) -> type | None:
    """What a template needs arguments to be, str or dict; None: it takes both, or neither.

    ``render`` gives the text of messages, "" where the template refuses them.
    """

    def said(arguments: Any) -> str:
        call = {"name": "f", "arguments": arguments}
        calls = [{"id": "call00000", "type": "function", "function": call}]
        answer = {"role": "assistant", "content": "", "tool_calls": calls}
        return render([{"role": "user", "content": "x"}, answer])

    as_text, written = _TEXT in said(_TEXT), said(json.loads(_TEXT))
    as_object = _NAME in written and f"'{_NAME}':" not in written  # not as Python shows it
    return None if as_text == as_object else (str if as_text else dict)


def fitted(message: Mapping[str, Any], kind: type | None) -> dict[str, Any]:
    """The message with its calls' arguments as ``kind``. Raises ValueError if they are not JSON."""
    calls = message.get("tool_calls")
    if kind is None or not isinstance(calls, list):
        return dict(message)
    return {**message, "tool_calls": [_fitted(call, kind) for call in calls]}


def _fitted(call: Any, kind: type) -> Any:
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or "arguments" not in inner:
        return call
    arguments = inner["arguments"]
    if kind is str and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif kind is dict and isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise ValueError(
                f"the arguments of tool call {inner.get('name')!r} are a text that is not JSON, "
                "and the chat template writes an object."
            ) from None
    inner = {**inner, "arguments": arguments}
    return {**call, "function": inner} if "function" in call else inner
