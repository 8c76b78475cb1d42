"""Whatever is handed over as a prompt -> lists of token ids. docs/inputs.md has the table.

One prompt is a string, a sequence or array of token ids, what a tokenizer of Transformers returns
for one text, or a conversation (a list of messages). Several are a list of these, an array of two
dimensions, or what such a tokenizer returns for several texts.
"""

from __future__ import annotations

import difflib
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from specjax.checkpoint.load import Model
from specjax.checkpoint.messages import REASONING
from specjax.prompts.forms import check_text, is_conversation, is_list, show, split, type_name

Message = Mapping[str, Any]  # role, content, and whatever else the template reads
Conversation = Sequence[Message]
# One prompt or several. Arrays of any library will do, so no type can say it all.
Prompts = str | Sequence[Any] | Mapping[str, Any] | np.ndarray | Any

# What a template is given by other means.
_GIVEN = ("messages", "add_generation_prompt", "tools", "documents")
_plain: weakref.WeakSet[Model] = weakref.WeakSet()  # targets that plain text was noted for
_unread: weakref.WeakKeyDictionary[Model, set[str]] = weakref.WeakKeyDictionary()  # noted


class PlainTextWarning(UserWarning):
    """Plain text was handed to a target that was trained on conversations."""


def prompt_ids(
    target: Model,
    prompts: Prompts,
    *,
    template_args: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[list[int]]:
    """The token ids of each prompt, in order.

    Text gets the BOS token that its tokenizer asks for, conversations what their template writes;
    ids stay as they are, without padding.

    Args:
      target: whose tokenizer and template read them.
      prompts: one or several.
      template_args: what the template reads besides, such as ``enable_thinking``.
      tools: the functions that the target may call, as JSON schemas.

    Raises:
      ValueError: in one line that names the prompt, counted from 0, on anything else.
    """
    rows, conversations = [], 0
    for i, prompt in enumerate(split(prompts)):
        if is_conversation(prompt):
            conversations += 1
            rows.append(
                conversation_ids(
                    target, prompt, template_args=template_args, tools=tools, where=f"Prompt {i}"
                )
            )
        else:
            rows.append(_text_ids(target, prompt, i) if isinstance(prompt, str) else prompt)
    for name, value in (("template_args", template_args), ("tools", tools)):
        if value and not conversations:
            raise ValueError(f"{name} is for conversations, and none of the prompts is one.")
    return rows


def conversation_ids(
    target: Model,
    messages: Conversation,
    *,
    template_args: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    where: str = "The conversation",
) -> list[int]:
    """The ids of a conversation in the target's own template, begun for the next response.

    They are those of Transformers' ``apply_chat_template(messages, add_generation_prompt=True)``.

    Raises:
      ValueError: in one line that begins with ``where``, if the target has no template or
        tokenizer, or the template refuses the messages.
    """
    text = conversation_text(
        target, messages, template_args=template_args, tools=tools, where=where
    )
    check_text(text, f"{where}, rendered")
    assert target.tokenizer is not None  # `conversation_text` has looked
    # The template writes the text of the BOS token itself.
    return target.tokenizer.encode(text, add_bos=False)


def conversation_text(
    target: Model,
    messages: Conversation,
    *,
    template_args: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    where: str = "The conversation",
) -> str:
    """The text whose ids `conversation_ids` returns. Raises as it does."""
    if not is_conversation(messages):
        raise ValueError(f"{where} is {type_name(messages)}, not a list of messages with a role.")
    for i, message in enumerate(messages):
        if not isinstance(message["role"], str):
            raise ValueError(f"{where}: the role of message {i} is {show(message['role'])}.")
        for text in _strings(message):
            check_text(text, f"{where}, message {i}")
    variables = _variables(template_args, tools, where)
    if target.tokenizer is None:
        raise ValueError(
            f"{where} is a conversation, but {target.name} has no tokenizer.json: pass token ids."
        )
    try:
        template = target.chat_template
        text = template.render([dict(m) for m in messages], prompt=True, **variables)
    except ValueError as error:
        raise ValueError(f"{where} is a conversation: {error}") from None
    note_unread(target, template_args or {}, messages, tools=bool(tools))
    return text


def note_unread(
    target: Model,
    template_args: Mapping[str, Any],
    messages: Conversation = (),
    *,
    tools: bool = False,
) -> None:
    """Says, once, what the target's template was given and does not read.

    It changes nothing then, as in Transformers; a misspelt name does not either.
    """
    template = target.chat_template
    reads, mentions = template.variables, set(template.mentions)
    mentions |= {"role", "content", *(REASONING if mentions.intersection(REASONING) else ())}
    unread = []
    for name in sorted(set(template_args) - reads):
        near = difflib.get_close_matches(name, reads, 1)
        unread.append(name + (f" (did you mean {near[0]}?)" if near else ""))
    if tools and "tools" not in reads:
        unread.append("tools")
    given = {name for m in messages for name, value in m.items() if value is not None}
    unread += [f"{name} of a message" for name in sorted(given - mentions)]
    told = _unread.setdefault(target, set())
    new = [what for what in unread if what not in told]
    told.update(new)
    if new:
        warnings.warn(
            f"the chat template of {target.name} does not read {', '.join(new)}: left out.",
            UserWarning,
            stacklevel=2,
        )


def _variables(template_args: Any, tools: Any, where: str) -> dict[str, Any]:
    """What the template is given besides the messages; Transformers names tools and documents."""
    if template_args is not None and not isinstance(template_args, Mapping):
        raise ValueError(
            f"template_args is {type_name(template_args)}, not a mapping {{name: value}}."
        )
    for name in template_args or ():
        if not isinstance(name, str):
            raise ValueError(f"template_args has the name {name!r}: names are strings.")
        if name in _GIVEN:
            raise ValueError(f"template_args cannot set {name!r}: it is given by other means.")
    if tools is not None:
        if not is_list(tools) or not all(isinstance(tool, Mapping) for tool in tools):
            raise ValueError("tools is not a list of JSON schemas, a mapping each.")
        for text in _strings(tools):
            check_text(text, f"{where}, tools")
    return {**(template_args or {}), "tools": tools or None, "documents": None}


def _text_ids(target: Model, text: str, index: int) -> list[int]:
    if target.tokenizer is None:
        raise ValueError(
            f"Prompt {index} is text, but {target.name} has no tokenizer.json: pass token ids."
        )
    ids = target.tokenizer.encode(text)
    if not ids and target.bos_token_id is not None:
        ids = [target.bos_token_id]
    _note_plain_text(target, text, index)
    return ids


def _note_plain_text(target: Model, text: str, index: int) -> None:
    """Says, once a target, that its template was not used."""
    assert target.tokenizer is not None
    if target in _plain or any(token in text for token in target.tokenizer.special_tokens):
        return
    try:
        target.chat_template  # noqa: B018
    except (ValueError, OSError):
        return
    _plain.add(target)
    warnings.warn(
        f"Prompt {index} is plain text, and {target.name} was trained on conversations: for its "
        'chat template, hand over [{"role": "user", "content": ...}].',
        PlainTextWarning,
        stacklevel=6,  # the caller of generate, stream or check
    )


def _strings(value: Any) -> list[str]:
    """All strings inside of what JSON can hold."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [s for pair in value.items() for part in pair for s in _strings(part)]
    return [s for part in value for s in _strings(part)] if is_list(value) else []
