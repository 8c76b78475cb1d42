"""What a script asks the target: flags, prompts and conversations, and the law of the answers."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags

import specjax
from specjax import verify
from specjax.core.assignments import read_assignments
from specjax.core.compile_cache import default_directory, use_compile_cache
from specjax.prompts.files import FilePrompt
from specjax.prompts.ids import conversation_ids, conversation_text
from specjax.sampling import Options
from specjax.session.limits import LARGEST, check_count
from specjax.verify import RULES

flags.disclaim_key_flags()  # they are those of the script that defines them

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def define_flags(*, max_new_tokens: int = 128) -> None:
    """Defines those of the request, and of conversations."""
    flags.DEFINE_string(
        "rule",
        None,
        f"Verification rule, one of {', '.join(RULES)}, or FILE.py:NAME. Default: the best "
        "lossless one.",
    )
    flags.DEFINE_float("temperature", 0.0, "0 is greedy.")
    flags.DEFINE_float("top_p", 1.0, "Draw from the likeliest tokens of this total mass only.")
    flags.DEFINE_integer("max_new_tokens", max_new_tokens, "The most tokens to add to a prompt.")
    flags.DEFINE_string("system", None, "The system message of every conversation.")
    flags.DEFINE_string(
        "template_args",
        "",
        "What the chat template reads besides: NAME=VALUE,NAME=VALUE, such as "
        "enable_thinking=false; values are JSON, or else text.",
    )


@dataclasses.dataclass(frozen=True)
class Law:
    """The fields of --config that generate and chat share; see configs/generate.py."""

    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: str
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...] | None
    chunk: int
    cycles_per_call: int
    compilation_cache: str

    def request(self) -> dict[str, Any]:
        """Arguments of `specjax.generate`, those of flags included.

        Raises:
          ValueError: on an option out of its range, as far as that can be told without a target.
        """
        request = {
            "max_new_tokens": flags.FLAGS.max_new_tokens,
            "rule": flags.FLAGS.rule,
            "temperature": flags.FLAGS.temperature,
            "top_p": flags.FLAGS.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": read_bias(self.logit_bias),
            "stop": self.stop,
            "stop_token_ids": self.stop_token_ids,
            "chunk": self.chunk,
        }
        if flags.FLAGS.rule is not None:
            try:
                verify.get(flags.FLAGS.rule)
            except ValueError as error:
                said = str(error).removeprefix(f"{flags.FLAGS.rule}: ")
                raise ValueError(f"--rule={flags.FLAGS.rule}: {said}") from None
        law = {f.name: request[f.name] for f in dataclasses.fields(Options)}
        Options(**law).check(LARGEST, request["max_new_tokens"])
        return request


AnyLaw = TypeVar("AnyLaw", bound=Law)


def read_config(value: Any, kind: type[AnyLaw], default: Path) -> AnyLaw:
    """The fields of --config, and its compilation cache is in use.

    Raises:
      ValueError: if a field is missing, unknown, or has no possible value.
    """
    try:
        given = value.to_dict()
    except Exception as error:  # whatever the user's file raises
        raise ValueError(f"--config cannot be read: {error}") from None
    wanted = {field.name for field in dataclasses.fields(kind)}
    for name in sorted(given.keys() ^ wanted):
        what = "lacks the field" if name in wanted else "has the unknown field"
        raise ValueError(f"--config {what} {name!r}; start from a copy of {default}.")
    config = kind(**given)
    for name in ("batch_size", "cycles_per_call", "repeats", "chunk"):
        check_count(f"--config.{name}", getattr(config, name, 1))
    if config.compilation_cache == "auto":
        try:  # a convenience that nobody asked for must not end the run
            use_compile_cache(default_directory())
        except ValueError as error:
            print("note:", error, file=sys.stderr)
    elif config.compilation_cache:
        use_compile_cache(config.compilation_cache)
    return config


def read_bias(text: str) -> dict[int, float]:
    """Reads --config.logit_bias, ID:BIAS,ID:BIAS."""
    try:
        pairs = [part.split(":") for part in text.split(",")] if text else []
        return {int(token): float(bias) for token, bias in pairs}
    except ValueError:
        raise ValueError(
            f"--config.logit_bias={text!r} is not ID:BIAS,ID:BIAS, such as 13:-inf,42:2.5."
        ) from None


def template_args() -> dict[str, Any]:
    """What --template_args holds."""
    return read_assignments(flags.FLAGS.template_args, "--template_args")


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


def ask(prompts: Sequence[FilePrompt], *, chat: bool) -> list[Asked]:
    """The prompts as --chat, --system and --template_args make them.

    Raises:
      ValueError: if one of these flags applies to none of them, or contradicts one.
    """
    system, args = flags.FLAGS.system, template_args()
    if not chat and all(p.messages is None for p in prompts):
        for flag, value in (("system", system), ("template_args", args)):
            if value:
                raise ValueError(
                    f"--{flag} is for conversations, and there is none: add --chat, or use lines "
                    'with "messages".'
                )
    return [_asked(prompt, chat, system, args) for prompt in prompts]


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
