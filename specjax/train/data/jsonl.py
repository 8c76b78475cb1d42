"""Files of JSON lines as training rows: conversations, and rows of tokens.

A line is one of

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
    {"prompt": "...", "response": "..."}
    {"tokens": [..], "prompt_tokens": 17}

(docs/inputs.md has all of it). The first three go through the target's chat template, and the
responses alone are supervised. The last, which `experiments.regenerate` writes, is taken as it is:
text that is tokenised again may come back as other tokens than the target wrote.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specjax.checkpoint.chat import ChatTemplate
from specjax.core import pulse
from specjax.train.data.conversation import (
    Conversation,
    check_kind,
    read_conversation,
    read_messages,
)
from specjax.train.data.lines import POLICIES, BadLines, objects, parse_line, read_lines
from specjax.train.data.rows import Fixed, Row
from specjax.train.data.text import Speech
from specjax.train.data.turns import TURNS, Speaker

__all__ = ["Line", "Lines", "Reading", "objects", "read_messages", "read_rows", "token_row"]

# Of a row of tokens, as `experiments.regenerate` writes it.
_OF_TOKENS = ("tokens", "prompt_tokens", "prompt", "response", "finish")
_DAY = datetime.datetime(2025, 1, 1)  # any: by it lines are told apart, whatever today is


@dataclasses.dataclass(frozen=True)
class Reading:
    """How lines are read."""

    turns: str = ""  # see `turns.Speaker.rows`
    ignore: tuple[str, ...] = ()  # fields, of lines and messages, that are left out
    bad_lines: str = "stop"  # or "skip": leave them out, and say so
    replace_bad_text: bool = False  # what is no character becomes U+FFFD
    # What the template is given besides; a line's own fields go before.
    template_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for field, known in (("turns", TURNS), ("bad_lines", POLICIES)):
            if getattr(self, field) not in known:
                names = ", ".join(name or "''" for name in known)
                raise ValueError(f"--config.data.{field}={getattr(self, field)!r}: known: {names}.")


@dataclasses.dataclass(frozen=True)
class Line:
    """The rows of one line, which stay together when some are held out."""

    num: int  # counted from 1
    rows: tuple[Row, ...]
    undated: tuple[Row, ...] = ()  # the same as written on a fixed day; (): they have no date

    @property
    def digest(self) -> str:
        """The same for lines that become the same rows, and on every day."""
        whole = hashlib.sha256()
        for row in self.undated or self.rows:
            whole.update(row.tokens.tobytes() + row.supervised.tobytes() + b"|")
        return whole.hexdigest()


class Lines(Fixed):
    """The rows of a file.

    Attributes:
      lines: they by line.
      notes: what a user should know of the file, a line each.
    """

    def __init__(self, lines: Sequence[Line], notes: Sequence[str]):
        super().__init__([row for line in lines for row in line.rows])
        self.lines, self.notes = tuple(lines), tuple(notes)


@dataclasses.dataclass(frozen=True)
class Block:
    """What consecutive lines of a file became."""

    lines: tuple[Line, ...] = ()  # those that have rows
    num: int = 0  # of all lines
    num_rows: int = 0  # of the lines that can be used
    short: int = 0  # of these, rows without a supervised token
    bad: BadLines = dataclasses.field(default_factory=BadLines)  # lines that are skipped
    # Fields that the template does not look at everywhere: in how many messages, the first of them.
    passed: Mapping[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    error: str = ""  # of the line that ends the run; what is behind it was not read
    in_vain: bool = False  # a role was tried and is not written: had it been before, it would pass

    def whole(self, path: Path, seq_len: int) -> Lines:
        """The rows of ``path``, whose lines these are. Raises ValueError as `read_rows` does."""
        if self.error:
            raise ValueError(self.error)
        if not self.num:
            raise ValueError(f"{path} is empty: there is nothing to train on.")
        notes = self.bad.notes(path, self.num)
        if self.bad.num == self.num:
            raise ValueError(f"No line can be used. {notes[0]}.")
        if not self.lines:
            raise ValueError(
                f"{path}: no supervised token within the first seq_len={seq_len} tokens of any of "
                f"its {self.num_rows} rows; raise --config.data.seq_len."
            )
        notes += [
            f"{path}: {name} of {num} messages is not looked at by the chat template where it "
            f"stands (first: {first})"
            for name, (num, first) in self.passed.items()
        ]
        if self.short:
            notes.append(
                f"{path}: {self.short} of {self.num_rows} rows have no response within the first "
                f"seq_len={seq_len} tokens and are left out"
            )
        return Lines(self.lines, notes)


def read_rows(
    path: Path,
    speech: Speech,
    template: Callable[[], ChatTemplate],
    *,
    seq_len: int,
    reading: Reading | None = None,
) -> Lines:
    """The rows of a file, each cut to ``seq_len`` tokens.

    Args:
      path: a .jsonl file.
      speech: of the target.
      template: loads its chat template; called for the first conversation, if there is one.
      seq_len: rows whose responses all lie behind this are left out.
      reading: how; None: the defaults.

    Raises:
      ValueError: naming file and line, on what is not such a line, on empty responses, on fields
        that the template does not read, and on a file none of whose rows has a supervised token.
    """
    reading, lines = reading or Reading(), read_lines(path)
    block = read_block(path, lines, speech, template, seq_len=seq_len, reading=reading)
    return block.whole(path, seq_len)


def read_block(
    path: Path,
    lines: Iterable[tuple[str, bytes]],
    speech: Speech,
    template: Callable[[], ChatTemplate],
    *,
    seq_len: int,
    reading: Reading,
) -> Block:
    """What some lines of ``path`` become, as `lines.read_lines` gives them; else as `read_rows`."""
    reader = _Reader(speech, template, reading)
    cut = lambda row: Row(row.tokens[:seq_len], row.supervised[:seq_len])
    found: list[Line] = []
    bad, stopped_by = BadLines(), ""
    num = num_rows = short = 0
    for where, raw in lines:
        num += 1
        pulse.beat()
        try:
            value = parse_line(raw, where, replace=reading.replace_bad_text)
            rows, undated = reader.rows(value, where)
        except ValueError as error:
            if reading.bad_lines == "stop":
                stopped_by = str(error)
                break
            bad.add(path, error)
            continue
        kept = tuple(row for row in map(cut, rows) if row.supervised[1:].any())
        num_rows, short = num_rows + len(rows), short + len(rows) - len(kept)
        if kept:
            line = int(where.rsplit(" ", 1)[1])
            found.append(Line(line, kept, tuple(map(cut, undated))))
    said = (reader.passed, stopped_by, reader.in_vain)
    return Block(tuple(found), num, num_rows, short, bad, *said)


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


class _Reader:
    """Reads the lines of one file, and remembers what to say about it."""

    def __init__(self, speech: Speech, template: Callable[[], ChatTemplate], reading: Reading):
        self._speech, self._template, self._reading = speech, template, reading
        self._chat: ChatTemplate | None = None
        self._written: set[str] = set()  # roles that the template is known to write
        self.passed: dict[str, tuple[int, str]] = {}  # see `Block`
        self.in_vain = False

    def rows(self, value: dict[str, Any], where: str) -> tuple[list[Row], list[Row]]:
        """The rows, and those of a fixed day where the template dates them. Raises ValueError."""
        if "tokens" in value:
            self._check_tokens(value, where)
            return [token_row(value, self._speech, where)], []
        check_kind(value, where)  # before a template is asked for, which there may not be
        chat = self._chat = self._chat or self._template()
        speaker = Speaker(self._speech, chat)
        ignore = self._reading.ignore
        talk = read_conversation(value, where, roles=chat.mentions, ignore=ignore)
        if not any(talk.supervised):
            raise ValueError(f"{where}: every response has weight 0, so nothing to train on.")
        try:
            variables = self._variables(talk, chat)
            rows = speaker.rows(talk, variables, self._reading.turns)
            self._check(talk, [num for num, _ in rows], variables, chat, where)
            undated = []
            if chat.dated:
                other = Speaker(self._speech, chat.on(_DAY))
                undated = other.rows(talk, variables, self._reading.turns)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        return [row for _, row in rows], [row for _, row in undated]

    def _check_tokens(self, value: dict[str, Any], where: str) -> None:
        """Raises ValueError on what a row of tokens has besides."""
        for name, field in value.items():
            if name not in (*_OF_TOKENS, *self._reading.ignore) and field not in (None, "", [], {}):
                raise ValueError(f"{where}: nobody reads {name} of a row of tokens; {_leave(name)}")

    def _variables(self, talk: Conversation, chat: ChatTemplate) -> dict[str, Any]:
        """What the line has for the template besides messages."""
        fields = dict(talk.fields)
        more = fields.pop("chat_template_kwargs", {})
        if not isinstance(more, dict):
            raise ValueError("chat_template_kwargs is not an object.")
        fields = {**self._reading.template_args, **fields, **more}
        for name in fields:
            if name not in chat.variables:
                raise ValueError(_unread(name))
        return fields

    def _check(
        self,
        talk: Conversation,
        sizes: list[int],
        variables: dict[str, Any],
        chat: ChatTemplate,
        where: str,
    ) -> None:
        """Raises ValueError if the template leaves out what a message says."""
        num = max(sizes)
        seen: list[set[str]] = [set() for _ in range(num)]
        for size in sizes:
            looked = chat.looked_at(talk.messages[:size], **variables)
            for found, names in zip(seen, looked, strict=False):
                found |= names
        for i, found in enumerate(seen):
            message, place = talk.messages[i], talk.places[i]
            for name in [k for k, v in message.items() if v not in (None, "", [], {})]:
                if name in found or name == "role":
                    continue
                if name == "content":
                    raise ValueError(
                        f"{place}: the chat template leaves out the content of this message (some "
                        "do beside tool calls); remove the content, or the line."
                    )
                if name not in chat.mentions:
                    raise ValueError(f"{place}: {_unread(name)}")
                seen_before, first = self.passed.get(name, (0, f"{where}, {place}"))
                self.passed[name] = (seen_before + 1, first)
            self._try_role(talk.messages[:num], i, place, variables, chat)

    def _try_role(
        self,
        messages: list[Any],
        i: int,
        place: str,
        variables: dict[str, Any],
        chat: ChatTemplate,
    ) -> None:
        """Once a role: whether its messages are written at all. Raises ValueError if not."""
        role = messages[i]["role"]
        if role in ("user", "assistant") or role in self._written or not messages[i]["content"]:
            return
        self._written.add(role)
        try:
            without = chat.render([*messages[:i], *messages[i + 1 :]], **variables)
        except ValueError:  # it is missed
            return
        if without == chat.render(messages, **variables):
            self._written.discard(role)
            self.in_vain = True
            raise ValueError(
                f"{place}: the chat template writes nothing of a message of role {role!r}."
            )


def _unread(name: str) -> str:
    return f"nobody reads {name}: the target's chat template does not ask for it; {_leave(name)}"


def _leave(name: str) -> str:
    return f"remove it, or leave it out with --config.data.ignore='(\"{name}\",)'."
