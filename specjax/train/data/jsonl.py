"""Files of JSON lines as training rows: conversations, and rows of tokens.

A line is one of

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
    {"prompt": "...", "response": "..."}
    {"tokens": [..], "prompt_tokens": 17}

The first three go through the target's chat template, and the responses alone are supervised. The
last, which `experiments.regenerate` writes, is taken as it is: text that is tokenised again may
come back as other tokens than the target wrote.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from specjax.checkpoint.chat import ChatTemplate, Message
from specjax.train.data.rows import Fixed, Row
from specjax.train.data.text import Speech

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
}


def read_rows(
    path: Path, speech: Speech, template: Callable[[], ChatTemplate], *, seq_len: int
) -> Fixed:
    """The rows of a file, each cut to ``seq_len`` tokens.

    Args:
      path: a .jsonl file.
      speech: of the target.
      template: loads its chat template; called for the first conversation, if there is one.
      seq_len: rows whose responses all lie behind this are left out.

    Raises:
      ValueError: naming file and line, on what is not such a line, on empty responses, and on a
        file none of whose rows has a supervised token.
    """
    rows: list[Row] = []
    chat: ChatTemplate | None = None
    num = 0
    for where, value in objects(path):
        num += 1
        if "tokens" in value:
            row = token_row(value, speech, where)
        else:
            chat = chat or template()
            row = conversation_row(read_messages(value, where), speech, chat, where)
        row = Row(row.tokens[:seq_len], row.supervised[:seq_len])
        if row.supervised[1:].any():
            rows.append(row)
    if not num:
        raise ValueError(f"{path} is empty: there is nothing to train on.")
    if not rows:
        raise ValueError(
            f"{path}: no supervised token within the first seq_len={seq_len} tokens of any of its "
            f"{num} rows; raise --config.data.seq_len."
        )
    return Fixed(rows)


def objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each line is, and its object. Raises ValueError on what is not one."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; check the path.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; convert the file.") from None
    for i, line in enumerate(text.split("\n")):
        where = f"{path}, line {i + 1}"
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            raise ValueError(f"{where}: not JSON.") from None
        if not isinstance(value, dict):
            raise ValueError(f"{where}: not an object.")
        yield where, value


def token_row(value: dict[str, Any], speech: Speech, where: str) -> Row:
    """A row of token ids whose first ``prompt_tokens`` are not supervised."""
    tokens, begin = value["tokens"], value.get("prompt_tokens", 0)
    whole = isinstance(tokens, list) and all(type(t) is int for t in tokens)
    if not whole or not tokens:
        raise ValueError(f"{where}: tokens must be a list of token ids, not empty.")
    outside = [t for t in tokens if not 0 <= t < speech.vocab_size]
    if outside:
        raise ValueError(
            f"{where}: token {outside[0]} is not one of the target's {speech.vocab_size}; the rows "
            "are another model's."
        )
    if type(begin) is not int or not 0 <= begin <= len(tokens):
        raise ValueError(f"{where}: prompt_tokens={begin!r} is not between 0 and {len(tokens)}.")
    if begin == len(tokens):
        raise ValueError(f"{where}: the response is empty; remove the line.")
    return Row(np.array(tokens, np.int32), np.arange(len(tokens)) >= begin)


def read_messages(value: dict[str, Any], where: str) -> list[Message]:
    """The conversation of one line, in the roles of chat templates. Raises ValueError."""
    if "messages" in value or "conversations" in value:
        name = "messages" if "messages" in value else "conversations"
        said = value[name]
        if not isinstance(said, list) or not said:
            raise ValueError(f"{where}: {name} must be a list of messages, not empty.")
        messages = [_message(m, f"{where}, message {i + 1}") for i, m in enumerate(said)]
    elif "prompt" in value and "response" in value:
        pairs = (
            {"role": "user", "content": value["prompt"]},
            {
                "role": "assistant",
                "content": value["response"],
            },
        )
        messages = [_message(m, where) for m in pairs]
    else:
        raise ValueError(
            f'{where}: neither "messages", "conversations", "prompt" and "response", nor "tokens".'
        )
    if not any(m["role"] == "assistant" for m in messages):
        raise ValueError(f"{where}: no response of the assistant, so nothing to train on.")
    return messages


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not an object.")
    role = value.get("role", value.get("from"))
    content = value.get("content", value.get("value"))
    if role not in _ROLES:
        raise ValueError(f"{where}: role {role!r} is not one of {', '.join(sorted(_ROLES))}.")
    if not isinstance(content, str):
        raise ValueError(f"{where}: the content is {type(content).__name__}, not text.")
    role = _ROLES[role]
    if role == "assistant" and not content.strip():
        raise ValueError(f"{where}: the response is empty; remove the conversation.")
    return {"role": role, "content": content}


def conversation_row(
    messages: list[Message], speech: Speech, chat: ChatTemplate, where: str
) -> Row:
    """The tokens of a conversation, its responses supervised.

    What a response is, is found by rendering the conversation up to it and with it: what the second
    has more than the first, up to and with a token that ends the response.

    Raises:
      ValueError: if the tokens of the first are not a prefix of the second's.
    """
    if speech.tokenizer is None:
        raise ValueError("The target has no tokenizer.json: conversations cannot be read for it.")

    def tokens(messages: list[Message], *, prompt: bool = False) -> list[int]:
        return speech.tokenizer.encode(chat.render(messages, prompt=prompt), add_bos=False)

    try:
        whole = tokens(messages)
        supervised = np.zeros(len(whole), bool)
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = tokens(messages[:i], prompt=True), tokens(messages[: i + 1])
            if after[: len(before)] != before or whole[: len(after)] != after:
                raise ValueError(
                    f"the tokens before message {i + 1} change once it follows (the chat template "
                    "rewrites earlier turns, or a token reaches across the boundary), so those of "
                    "the response cannot be told apart; end the line with its only response."
                )
            end = len(after)
            stops = [j for j in range(len(before), end) if after[j] in speech.stop_token_ids]
            supervised[len(before) : stops[0] + 1 if stops else end] = True
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return Row(np.array(whole, np.int32), supervised)
