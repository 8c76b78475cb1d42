"""Conversations rendered by the target's own chat template, as Transformers renders them.

Templates are programs of a checkpoint, so they run in a sandbox (`checkpoint.sandbox`): they cannot
reach Python's internals, files or modules, and time and output are bounded.
"""

from __future__ import annotations

import copy
import datetime
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2 import nodes

from specjax.checkpoint import calls, sandbox
from specjax.checkpoint.messages import REASONING, Message
from specjax.core.files import read_json, read_text

# What is not a template's own variable.
_GIVEN = ("messages", "add_generation_prompt", "raise_exception", "strftime_now", "range")
_PROBE = "a5f0 probe"


class _Generation(jinja2.ext.Extension):
    """``{% generation %} .. {% endgeneration %}``, which some templates put around responses."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A scope of its own, as in Transformers.
        return nodes.CallBlock(self.call_method("_say"), [], [], body).set_lineno(line)

    def _say(self, caller: Callable[[], str]) -> str:
        return caller()


class ChatTemplate:
    """A conversation as the text that the target was trained to see.

    Attributes:
      mentions: every name that the template could read of a message: ``m.name``, ``m["name"]``,
        and whatever else it has as a text of its own, such as roles.
      variables: what it reads besides messages, such as ``tools`` and ``enable_thinking``.
      dated: whether it may write the day.
    """

    mentions: frozenset[str]
    variables: frozenset[str]
    dated: bool
    _day: datetime.datetime | None = None

    def __init__(
        self,
        source: str,
        special: Mapping[str, str],
        *,
        where: str,
        tool_use: str | None = None,
    ):
        """A template from its text.

        Args:
          source: the template.
          special: the texts of ``bos_token`` and its like.
          where: what it is, for messages.
          tool_use: another one, for conversations with tools.

        Raises:
          ValueError: if one of them is not a template.
        """
        self._where, self._special = where, dict(special)
        environment = sandbox.Environment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        environment.globals["raise_exception"] = _refuse
        sources = [source] if tool_use is None else [source, tool_use]
        for text in sources:
            if len(text) > sandbox.SOURCE:
                raise ValueError(f"{where}: {len(text):,} characters are too many for a template.")
        try:
            compiled = sandbox.within_bounds(
                lambda: [environment.from_string(text) for text in sources]
            )
            trees = [environment.parse(text) for text in sources]
            read = [jinja2.meta.find_undeclared_variables(tree) for tree in trees]
        except Exception as error:  # a template may break its compiler in any way
            raise ValueError(f"{where}: not a chat template: {_said(error)}") from None
        self._template, self._with_tools = compiled[0], compiled[-1]
        self.mentions = frozenset(name for tree in trees for name in _names(tree))
        self.dated = any("strftime_now" in names for names in read)
        variables = frozenset().union(*read) | ({"tools"} if tool_use is not None else set())
        own = {name for tree in trees for name in _locals(tree)}
        self.variables = variables - {*_GIVEN, *self._special} - own

    @classmethod
    def load(cls, directory: Path) -> ChatTemplate:
        """The template of a Hugging Face directory.

        It is in chat_template.jinja (with others in additional_chat_templates/), in
        tokenizer_config.json, or in a processor's chat_template.json. Of several by name it is
        ``default``, and ``tool_use`` where there are tools.

        Raises:
          ValueError: if it has none, or a file of it is damaged.
        """
        settings = _settings(directory / "tokenizer_config.json")
        where, found = _sources(directory, settings)
        if "default" not in found:
            if found:
                raise ValueError(
                    f"{where}: templates named {', '.join(sorted(found))}, and none is the default."
                )
            raise ValueError(
                f"{directory} has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json): use plain text, rows of tokens, or a target that holds "
                "conversations."
            )
        special = {}
        for name, token in {**_settings(directory / "special_tokens_map.json"), **settings}.items():
            if name.endswith("_token"):
                token = token.get("content") if isinstance(token, dict) else token
                if isinstance(token, str):
                    special[name] = token
        return cls(found["default"], special, where=where, tool_use=found.get("tool_use"))

    def on(self, day: datetime.datetime) -> ChatTemplate:
        """The same on another day than today."""
        other = copy.copy(self)
        other._day = day
        return other

    def render(self, messages: Sequence[Message], *, prompt: bool = False, **variables: Any) -> str:
        """The text of a conversation, with ``prompt`` begun for the next response.

        ``variables`` are what a template reads besides, such as ``tools`` and ``enable_thinking``.
        As in Transformers, a field of a message that is None is as if it were not there. Content
        given as a list of texts is joined where the template reads a text alone, and the other way
        round; so are the arguments of tool calls, text or object (`checkpoint.calls`).

        Raises:
          ValueError: if the template refuses it, fails, or asks for too much time or text.
        """
        shown = [_plain(m) for m in self._fitted(messages)]
        return self._render(shown, prompt, variables)

    def looked_at(self, messages: Sequence[Message], **variables: Any) -> list[frozenset[str]]:
        """The names that the template asks of each message while it renders them."""
        seen: list[set[str]] = [set() for _ in messages]
        fitted = zip(self._fitted(messages), seen, strict=True)
        shown: list[Message] = [_Watched(_plain(message), into) for message, into in fitted]
        self._render(shown, False, variables)
        return [
            frozenset(s) | (set(REASONING) if s.intersection(REASONING) else set()) for s in seen
        ]

    def _render(self, shown: list[Message], prompt: bool, variables: Mapping[str, Any]) -> str:
        chosen = self._template if variables.get("tools") is None else self._with_tools
        now = functools.partial(_now, self._day)
        given = {"tools": None, "documents": None, **self._special, "strftime_now": now}
        given |= variables
        try:
            return sandbox.within_bounds(
                lambda: chosen.render(given, messages=shown, add_generation_prompt=prompt)
            )
        except Exception as error:  # whatever a program may raise
            raise ValueError(f"{self._where} refuses it: {_said(error)}") from None

    def _fitted(self, messages: Sequence[Message]) -> Iterator[Message]:
        """The messages, their content and calls in the form that the template reads."""
        for message in messages:
            if message.get("tool_calls"):
                message = calls.fitted(message, self._call_arguments)
            content = message.get("content")
            if isinstance(content, list):
                _check_parts(content)
                if not self._takes_parts:
                    message = {**message, "content": "".join(p["text"] for p in content)}
            elif content and not self._takes_text and self._takes_parts:
                message = {**message, "content": [{"type": "text", "text": content}]}
            yield message

    @functools.cached_property
    def _takes_text(self) -> bool:
        return _PROBE in self._try(_PROBE)

    @functools.cached_property
    def _takes_parts(self) -> bool:
        said = self._try([{"type": "text", "text": _PROBE}])
        return _PROBE in said and "'text'" not in said and '"text"' not in said

    @functools.cached_property
    def _call_arguments(self) -> type | None:
        return calls.wanted(self._said_of)

    def _try(self, content: Any) -> str:
        return self._said_of([{"role": "user", "content": content}])

    def _said_of(self, messages: list[Message]) -> str:
        try:
            return self._render(messages, False, {})
        except ValueError:
            return ""


def _settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: not a JSON object.")
    return settings


def _sources(directory: Path, settings: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Where the templates are, and they by name."""
    own, others = directory / "chat_template.jinja", directory / "additional_chat_templates"
    found = {"default": read_text(own)} if own.exists() else {}
    if others.is_dir():
        found |= {path.stem: read_text(path) for path in sorted(others.glob("*.jinja"))}
    if found:
        return str(own if own.exists() else others), found
    path, source = directory / "tokenizer_config.json", settings.get("chat_template")
    if source is None:
        path = directory / "chat_template.json"
        source = _settings(path).get("chat_template")
    if isinstance(source, list):  # several by name
        whole = all(isinstance(e, dict) and {"name", "template"} <= e.keys() for e in source)
        source = {e["name"]: e["template"] for e in source} if whole else {}
    if source is None:
        return str(path), {}
    named = source if isinstance(source, dict) else {"default": source}
    if not named or not all(isinstance(text, str) for text in named.values()):
        raise ValueError(f"{path}: chat_template is neither a text nor texts by name.")
    return str(path), named


def _names(tree: nodes.Node) -> Iterator[str]:
    """Everything in a template that may name a field."""
    for attribute in tree.find_all(nodes.Getattr):
        yield attribute.attr
    for constant in tree.find_all(nodes.Const):
        if isinstance(text := constant.as_const(), str):
            yield text


def _locals(tree: nodes.Node) -> Iterator[str]:
    """What a template sets in its loops, its own even where jinja2 cannot tell.

    Not what it asks whether it is defined: there it sets what nobody gave.
    """
    asked = {
        test.node.name
        for test in tree.find_all(nodes.Test)
        if test.name in ("defined", "undefined") and isinstance(test.node, nodes.Name)
    }
    for loop in tree.find_all(nodes.For):
        for name in loop.find_all(nodes.Name):
            if name.ctx == "store" and name.name not in asked:
                yield name.name


def _plain(message: Message) -> Message:
    """What Transformers shows of a message."""
    shown = {name: value for name, value in message.items() if value is not None}
    for name in REASONING:
        if name in shown:
            return {"thinking": shown[name], **shown, "reasoning_content": shown[name]}
    return shown


def _check_parts(parts: Iterable[Any]) -> None:
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"a content part of type {kind!r}: only text can be read.")


class _Watched(dict[str, Any]):
    """A message that notes what is asked of it."""

    def __init__(self, fields: Message, seen: set[str]):
        super().__init__(fields)
        self._seen = seen

    def _all(self) -> None:
        self._seen.update(dict.keys(self))

    def __getitem__(self, name: str) -> Any:
        self._seen.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._seen.add(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._seen.add(name)
        return super().get(name, default)

    def keys(self) -> Any:
        self._all()
        return super().keys()

    def items(self) -> Any:
        self._all()
        return super().items()

    def values(self) -> Any:
        self._all()
        return super().values()

    def copy(self) -> Any:
        self._all()
        return super().copy()

    def __iter__(self) -> Iterator[str]:
        self._all()
        return super().__iter__()

    def __repr__(self) -> str:
        self._all()
        return super().__repr__()


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(str(message)[:1000])


def _now(day: datetime.datetime | None, form: str) -> str:
    if len(form) > 1000:
        raise sandbox.TooMuch("it asks for a date in more than 1000 characters")
    return (day or datetime.datetime.now()).strftime(form)


def _said(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, RecursionError):
        return "it calls itself, or nests, without end"
    said = " ".join(str(error).split())[:500]
    if isinstance(error, (jinja2.TemplateError, sandbox.TooMuch)):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
