"""A conversation with the target in a terminal, streamed and coloured by who guessed each token.

  python -m experiments.chat --target=Qwen/Qwen3-4B --drafter=ngram --dtype=bfloat16
  python -m experiments.chat --target=Qwen/Qwen3-8B --drafter=dflash:z-lab/Qwen3-8B-DFlash-b16 \\
      --system='Be brief.' --template_args=enable_thinking=false --temperature=0.6
  python -m experiments.chat --target=DIR --drafter=ngram < messages.txt

The target needs a chat template. Each turn renders the whole conversation anew, so the template
sees, and may rewrite, every turn; messages themselves are edited by nobody but the user. What the
target has read before, up to the first token that differs, is not fed again.
Ctrl-C ends an answer and keeps what was said, Ctrl-D ends the chat. From a pipe every line is a
message. What is not a flag here is a field of --config.
"""

from __future__ import annotations

import contextlib
import sys

from specjax.cli.errors import one_line_errors
from specjax.cli.script import Script
from specjax.jobs import chatting


def main(options: chatting.Options) -> None:
    with contextlib.suppress(AttributeError):  # bytes that are no text are refused when sent
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    with one_line_errors():
        chat = chatting.begin(options)
    chat.greet()
    chatting.converse(chat, chatting.read_lines(chat))


script = Script("chat", __doc__, chatting.Options, main)
