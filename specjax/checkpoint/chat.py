"""Conversations rendered by the target's own chat template, as Transformers renders them.

Templates are programs of a checkpoint, so they run in jinja2's sandbox: they cannot reach Python's
internals, files or modules.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

Message = dict[str, str]  # role, content


class _Generation(jinja2.ext.Extension):
    """``{% generation %} .. {% endgeneration %}``, which some templates put around responses."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A conversation as the text that the target was trained to see."""

    def __init__(self, source: str, special: dict[str, str], *, where: str):
        """``special`` holds the texts of ``bos_token`` and its like.

        Raises:
          ValueError: if ``source`` is not a template; ``where`` says what it is.
        """
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        self._where, self._special = where, special
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"{where}: not a chat template: {error}.") from None

    @classmethod
    def load(cls, directory: Path) -> ChatTemplate:
        """The template of a Hugging Face directory: chat_template.jinja or tokenizer_config.json.

        Raises:
          ValueError: if it has none.
        """
        settings: dict[str, Any] = {}
        path = directory / "tokenizer_config.json"
        if path.is_file():
            settings = json.loads(path.read_text(encoding="utf-8"))
        own = directory / "chat_template.jinja"
        source = settings.get("chat_template")
        if own.is_file():
            path, source = own, own.read_text(encoding="utf-8")
        if isinstance(source, list):  # several by name
            named = {entry["name"]: entry["template"] for entry in source}
            source = named.get("default")
        if not isinstance(source, str):
            raise ValueError(
                f"{directory} has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json): use plain text, rows of tokens, or a target that holds "
                "conversations."
            )
        special = {}
        for name, token in settings.items():
            if name.endswith("_token"):
                token = token.get("content") if isinstance(token, dict) else token
                if isinstance(token, str):
                    special[name] = token
        return cls(source, special, where=str(path))

    def render(self, messages: Sequence[Message], *, prompt: bool = False, **variables: Any) -> str:
        """The text of a conversation, with ``prompt`` begun for the next response.

        ``variables`` are what a template reads besides, such as ``enable_thinking``.

        Raises:
          ValueError: if the template refuses it.
        """
        try:
            return self._template.render(
                **self._special,
                **variables,
                messages=list(messages),
                add_generation_prompt=prompt,
            )
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise ValueError(f"{self._where} refuses it: {error}") from None


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    # jinja2's own filter escapes what HTML could read.
    return json.dumps(value, ensure_ascii=False, indent=indent)
