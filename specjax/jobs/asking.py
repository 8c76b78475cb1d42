"""What a script asks the target: options, prompts and conversations, and the law of the answers."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import specjax
from specjax import sampling, verify
from specjax.core.assignments import read_assignments
from specjax.core.compile_cache import default_directory, use_compile_cache
from specjax.core.options import LARGEST, again, check, option
from specjax.prompts.files import FilePrompt
from specjax.prompts.ids import conversation_ids, conversation_text
from specjax.verify import RULES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law(sampling.Options):
    """The law that is sampled from, where a text ends, and how it is decoded."""

    rule: str | None = option(
        None,
        f"Verification rule, one of {', '.join(RULES)}, or FILE.py:NAME. Default: the best "
        "lossless one.",
    )
    max_new_tokens: int = option(128, "The most tokens to add to a prompt.")
    system: str | None = option(None, "The system message of every conversation.")
    template_args: Any = option(
        "",
        "What the chat template reads besides: NAME=VALUE,NAME=VALUE, such as "
        "enable_thinking=false; values are JSON, or else text.",
    )
    # A mapping {id: bias}, or text.
    logit_bias: Any = again(
        sampling.Options, "logit_bias", default="", help="ID:BIAS,ID:BIAS; -inf forbids a token."
    )
    stop: tuple[str, ...] = option(
        (), "Strings, cut off, that end a text: --config.stop=\"('class ',)\".", config=True
    )
    stop_token_ids: tuple[int, ...] | None = option(
        None, "Tokens that end a text; None: the checkpoint's own.", config=True
    )
    chunk: int | None = option(
        None,
        "Most tokens of a prompt in one prefill pass. None: 256; where prompts do not take turns"
        " up to 2048 on GPUs, 1024 on TPUs.",
        config=True,
        least=1,
    )
    cycles_per_call: int = option(
        4, "Where text is shown as it comes: cycles between two looks.", config=True, least=1
    )
    compilation_cache: str = option(
        "auto", "A directory; auto: ~/.cache/specjax/xla; '': none.", config=True
    )

    def __post_init__(self) -> None:
        check(self)

    def request(self) -> dict[str, Any]:
        """Arguments of `specjax.generate`.

        Raises:
          ValueError: on an option out of its range, as far as that can be told without a target.
        """
        law = {f.name: getattr(self, f.name) for f in dataclasses.fields(sampling.Options)}
        law["logit_bias"] = read_bias(self.logit_bias)
        others = ("max_new_tokens", "rule", "stop", "stop_token_ids", "chunk")
        if self.rule is not None:
            try:
                verify.get(self.rule)
            except ValueError as error:
                said = str(error).removeprefix(f"{self.rule}: ")
                raise ValueError(f"--rule={self.rule}: {said}") from None
        sampling.Options(**law).check(LARGEST, self.max_new_tokens)
        return {**law, **{name: getattr(self, name) for name in others}}

    def template(self) -> dict[str, Any]:
        """What the chat template is given besides."""
        if isinstance(self.template_args, Mapping):
            return dict(self.template_args)
        return read_assignments(self.template_args, "--template_args")

    def use_cache(self) -> None:
        """Compiled programs are kept from now on. Raises ValueError if they cannot be."""
        if self.compilation_cache == "auto":
            try:  # a convenience that nobody asked for must not end the run
                use_compile_cache(default_directory())
            except ValueError as error:
                print("note:", error, file=sys.stderr)
        elif self.compilation_cache:
            use_compile_cache(self.compilation_cache)

    def ask(self, prompts: Sequence[FilePrompt], *, chat: bool) -> list[Asked]:
        """The prompts as --chat, --system and --template_args make them.

        Raises:
          ValueError: if one of these applies to none of them, or contradicts one.
        """
        args = self.template()
        if not chat and all(p.messages is None for p in prompts):
            for flag, value in (("system", self.system), ("template_args", args)):
                if value:
                    raise ValueError(
                        f"--{flag} is for conversations, and there is none: add --chat, or use "
                        'lines with "messages".'
                    )
        return [_asked(prompt, chat, self.system, args) for prompt in prompts]


def read_bias(bias: str | Mapping[int, float]) -> dict[int, float]:
    """Reads ID:BIAS,ID:BIAS; a mapping is what it is. Raises ValueError."""
    if isinstance(bias, Mapping):
        return dict(bias)
    try:
        pairs = [part.split(":") for part in bias.split(",")] if bias else []
        return {int(token): float(value) for token, value in pairs}
    except ValueError:
        raise ValueError(
            f"--config.logit_bias={bias!r} is not ID:BIAS,ID:BIAS, such as 13:-inf,42:2.5."
        ) from None


@dataclasses.dataclass(frozen=True)
class Asked:
    """One prompt: text to continue, or a conversation to answer."""

    record: Mapping[str, Any]  # what a line of results says of it
    where: str  # for messages
    messages: Sequence[Mapping[str, Any]] | None = None  # None: the record's text
    tools: Sequence[Mapping[str, Any]] | None = None
    args: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def prompt(self, target: specjax.Model) -> str | list[int]:
        """What `specjax.generate` takes. Raises ValueError if the template refuses it."""
        if self.messages is None:
            return str(self.record["prompt"])
        return conversation_ids(
            target, self.messages, template_args=self.args, tools=self.tools, where=self.where
        )

    def text(self, target: specjax.Model) -> str:
        """The prompt as it is shown. Raises what `prompt` does."""
        if self.messages is None:
            return str(self.record["prompt"])
        return conversation_text(
            target, self.messages, template_args=self.args, tools=self.tools, where=self.where
        )


def _asked(prompt: FilePrompt, chat: bool, system: str | None, args: dict[str, Any]) -> Asked:
    if prompt.messages is None and not chat:
        return Asked({"prompt": prompt.text}, prompt.where)
    if prompt.messages is None:
        record: dict[str, Any] = {"prompt": prompt.text}
        messages = [{"role": "user", "content": prompt.text}]
    else:
        record = {"messages": list(prompt.messages)}
        record |= {"tools": list(prompt.tools)} if prompt.tools else {}
        messages = [dict(m) for m in prompt.messages]
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            f"{prompt.where} ends in what the assistant said, so there is nothing to answer; "
            "remove that message (experiments.regenerate answers such lines anew)."
        )
    if system is not None:
        if messages[0].get("role") == "system":
            raise ValueError(f"{prompt.where} has a system message of its own; leave --system out.")
        messages = [{"role": "system", "content": system}, *messages]
    return Asked(record, prompt.where, messages, prompt.tools, args)
