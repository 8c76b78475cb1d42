"""A conversation with the target in a terminal, or from lines of a notebook."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import specjax
from specjax import verify
from specjax.checkpoint.drafters.named import Named, parse
from specjax.core.family import Family
from specjax.core.files import write_atomically
from specjax.core.options import again, option, typed
from specjax.core.seeds import seed_of
from specjax.drafters.family import family_of
from specjax.drafters.spec import with_num_draft
from specjax.jobs.asking import Law
from specjax.jobs.interrupts import Interrupt
from specjax.jobs.models import Models
from specjax.jobs.writing import Said, open_console, show_stream
from specjax.lab.view.marks import Kind
from specjax.lab.view.text import Painter
from specjax.prompts.ids import conversation_ids

PROMPT = "> "
HELP = """/reset                          begins a new conversation
/save FILE                      writes this one, as a line of training data
/drafter NAME[:CHECKPOINT][:K]  goes on with another drafter
/k N                            goes on with N guesses a cycle
/quit                           ends, as Ctrl-D does
//TEXT                          sends /TEXT
Ctrl-C ends an answer and keeps what was said."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Models, Law):
    """Who is talked to, and how."""

    max_new_tokens: int = again(Law, "max_new_tokens", default=1024)
    seed: int = option(0, "Turn i, counted from 0, uses seed + i.")

    def beginning(self) -> list[dict[str, str]]:
        """The messages of a new conversation."""
        return [] if self.system is None else [{"role": "system", "content": self.system}]


class Refused(Exception):
    """What the user asked for and cannot have, in one line; the chat goes on."""


@dataclasses.dataclass
class Chat:
    """A conversation, and what answers in it."""

    options: Options
    target: specjax.Model
    spec: Any
    drafter: Named
    request: dict[str, Any]  # arguments of `specjax.stream`
    args: dict[str, Any]  # of the template
    painter: Painter
    messages: list[dict[str, str]]
    turns: int = 0
    memory: specjax.Memory = dataclasses.field(default_factory=specjax.Memory)
    saved: Path | None = None  # the file that /save wrote, and may write again

    def greet(self) -> None:
        """Says who answers, and how to read the answers."""
        self.painter.write_line(self.painter.legend())
        self.say(f"{self.describe_drafter()}; /help lists the commands")

    def reset(self) -> None:
        """Begins anew, with the system message if there is one."""
        self.messages = self.options.beginning()

    def answer(self, text: str) -> None:
        """Shows and keeps the answer to a message.

        Raises:
          Refused: if there can be none; the message is not kept then.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        longest, most = self.target.config.max_position_embeddings, self.request["max_new_tokens"]
        begin = time.perf_counter()
        with Interrupt() as interrupt:
            try:
                ids = conversation_ids(
                    self.target, messages, template_args=self.args, where="This conversation"
                )
                room = longest - len(ids)
                if room < 1:
                    raise Refused(
                        f"The conversation has {len(ids)} tokens with this message, and the model "
                        f"reads {longest} at most: /reset begins a new one."
                    )
                request = {**self.request, "max_new_tokens": min(most, room)}
                seed = seed_of(self.options.seed, self.turns)
                pieces = specjax.stream(
                    self.target, self.spec, [ids], seed=seed, memory=self.memory, **request
                )
            except ValueError as error:
                raise Refused(str(error)) from None
            said = show_stream(pieces, self.painter, interrupt)
        self.painter.write_line("")
        self.messages = [*messages, {"role": "assistant", "content": said.text}]
        self.turns += 1
        wall = time.perf_counter() - begin
        rule = self.request["rule"]
        lossy = "" if rule is None or verify.get(rule).lossless else f", {Kind.LOSSY}"
        self.say(describe(said, wall, *self.memory.kept) + lossy)
        self.say(f"{len(ids) + len(said.tokens)} of {longest} tokens{why(said, most, room)}\n")

    def save(self, name: str) -> None:
        """Writes the conversation as one line of JSON. Raises Refused if that cannot be."""
        path = Path(name).expanduser()
        if not name:
            raise Refused("/save FILE: which file?")
        if not any(m["role"] == "assistant" for m in self.messages):
            raise Refused("Nothing was said yet.")
        if path.exists() and path != self.saved:
            raise Refused(f"{path} exists; name another file.")
        try:
            line = json.dumps({"messages": self.messages}, ensure_ascii=False)
            write_atomically(path, line + "\n")
        except OSError as error:
            raise Refused(f"{path}: {error.strerror or error}.") from None
        self.saved = path
        self.say(f"{len(self.messages)} messages in {path}")

    def change_drafter(self, asked: str) -> None:
        """Goes on with another drafter. Raises Refused if there is none such."""
        if asked:
            try:
                choice = self.options.complete(parse(asked))
                spec = self.options.load_drafter(choice, self.target)
                self.check(spec)
            except (ValueError, OSError) as error:
                raise Refused(str(error)) from None
            self.drafter, self.spec = choice, spec
        self.say(self.describe_drafter())

    def change_k(self, asked: str) -> None:
        """Goes on with another number of guesses. Raises Refused if the drafter cannot."""
        if asked:
            if not asked.isdecimal():
                raise Refused(f"/k {asked}: a number of guesses a cycle, such as /k 4.")
            if family_of(self.spec) is Family.NONE:
                raise Refused("The drafter none guesses nothing: /drafter NAME first.")
            try:
                spec = with_num_draft(self.spec, int(asked))
                self.check(spec)
            except ValueError as error:
                raise Refused(str(error)) from None
            self.spec = spec
        self.say(self.describe_drafter())

    def check(self, spec: Any) -> None:
        """Raises ValueError if ``spec`` cannot serve a first message of this chat."""
        first = [*self.options.beginning(), {"role": "user", "content": "Hello"}]
        ids = conversation_ids(self.target, first, template_args=self.args, where="A first message")
        room = self.target.config.max_position_embeddings - len(ids)
        request = {name: value for name, value in self.request.items() if name != "chunk"}
        request["max_new_tokens"] = min(request["max_new_tokens"], max(room, 1))
        request.pop("cycles_per_call")
        specjax.check(self.target, spec, [ids], seed=self.options.seed, **request)

    def describe_drafter(self) -> str:
        bound = self.spec.bind(self.target, "one_hot")
        name = self.drafter.called(self.spec)
        guesses = f" with {bound.num_draft} guesses a cycle" if bound.num_draft else ", no guesses"
        return f"{name}{guesses}, for {self.target.name}"

    def say(self, line: str) -> None:
        self.painter.write_plain(line + "\n")


def chat(lines: Iterable[str] | None = None, **options: Any) -> list[dict[str, str]]:
    """Talks with a target: answers each line, streamed and coloured by who guessed each token.

    Args:
      lines: messages, and commands such as /k 4; None: what is typed, or comes from a pipe.
      options: fields of `Options`.

    Returns:
      The messages of the conversation.

    Raises:
      ValueError: in one line, before the first answer, on what cannot be used.
    """
    talk = begin(Options(**typed(Options, (), options)))
    talk.greet()
    converse(talk, read_lines(talk) if lines is None else iter(lines))
    return talk.messages


def begin(options: Options) -> Chat:
    """Loads the models, checked. Raises ValueError."""
    drafter = options.chosen()
    options.use_cache()
    request = {**options.request(), "cycles_per_call": options.cycles_per_call}
    args = options.template()
    target = options.load_target()
    try:
        target.chat_template  # noqa: B018
    except ValueError as error:
        raise ValueError(
            f"{error} To continue text there is experiments.generate; to chat, name with "
            "--target a model that was trained on conversations."
        ) from None
    spec = options.load_drafter(drafter, target)
    painter = Painter(open_console())
    made = Chat(options, target, spec, drafter, request, args, painter, options.beginning())
    made.check(spec)
    return made


def converse(chat: Chat, lines: Iterator[str]) -> None:
    """Answers messages and follows commands until there are no more."""
    commands: dict[str, Callable[[str], None]] = {
        "reset": lambda rest: chat.reset(),
        "save": chat.save,
        "drafter": chat.change_drafter,
        "k": chat.change_k,
        "help": lambda rest: chat.say(HELP),
    }
    for line in lines:
        name, _, rest = line[1:].partition(" ")
        try:
            if not line.startswith("/") or line.startswith("//"):
                chat.answer(line.removeprefix("/") if line.startswith("//") else line)
            elif name == "quit":
                return
            elif name in commands:
                commands[name](rest.strip())
            else:
                raise Refused(f"No command /{name}; /help lists them, and //{name} sends it.")
        except Refused as refused:
            chat.say(f"error: {' '.join(str(refused).split())}")
        except KeyboardInterrupt:  # a second one, which did not wait for the device
            chat.say("\nstopped; neither this message nor its answer is kept")


def read_lines(chat: Chat) -> Iterator[str]:
    """What the user enters, without empty lines."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - input() edits lines where this is loaded
    while True:
        try:
            line = input(PROMPT if terminal else "")
        except EOFError:
            if terminal:
                chat.painter.write_line("")
            return
        except KeyboardInterrupt:
            if not terminal:
                raise
            chat.painter.write_line("\n(Ctrl-D or /quit ends the chat)")
            continue
        if not line.strip():
            continue
        if not terminal:  # the transcript shows what was asked
            chat.painter.write_plain(f"{PROMPT}{line}\n")
        yield line


def describe(said: Said, wall: float, kept: int = 0) -> str:
    """One line about an answer: tau, speed, and what is not in the speed; ``wall`` in seconds.

    ``kept`` tokens of its prompt were known from the turn before.
    """
    if not said.cycles:
        return "no token came"
    committed, begin, end = len(said.tokens), said.cycles[0].begin, said.cycles[-1].end
    parts = [
        f"tau {committed / len(said.cycles):.2f} ({committed} tokens, {len(said.cycles)} passes)",
        f"{committed / (end - begin):.1f} tokens/s",
        f"prefill {begin:.2f} s" + (f" ({kept} tokens known)" if kept else ""),
    ]
    if wall - end > 0.5:
        parts.append(f"compiling {wall - end:.1f} s, not in the speed")
    return ", ".join(parts)


def why(said: Said, most: int, room: int) -> str:
    """Why an answer ended, where that is not of its own accord."""
    if said.finish is None:
        return "; stopped by Ctrl-C"
    if said.finish == "stop":
        return ""
    if room <= most:
        return "; the model reads no more: /reset begins a new conversation"
    return f"; cut at --max_new_tokens={most}"
