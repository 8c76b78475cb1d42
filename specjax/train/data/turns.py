"""Which rows a conversation becomes, and which of their tokens are responses."""

from __future__ import annotations

from typing import Any

import numpy as np

from specjax.checkpoint.chat import ChatTemplate
from specjax.checkpoint.messages import Message
from specjax.train.data.conversation import Conversation
from specjax.train.data.rows import Row
from specjax.train.data.text import Speech

# "": all, or each where the template rewrites earlier turns.
TURNS = ("", "all", "last", "each")

_SEVERAL = "--config.data.turns=each makes it several rows."
_ALONE = (
    "where its prompt begins thoughts that the data does not have, "
    "--config.data.template_args='(\"enable_thinking=false\",)' may tell the template so."
)


class Rewritten(ValueError):
    """The template writes a turn otherwise once others follow it."""


class Speaker:
    """Writes conversations as tokens, one template and tokenizer."""

    def __init__(self, speech: Speech, chat: ChatTemplate):
        """Raises ValueError if the target has no tokenizer."""
        if speech.tokenizer is None:
            raise ValueError(
                "The target has no tokenizer.json: conversations cannot be read for it."
            )
        self._tokenizer, self._chat = speech.tokenizer, chat
        # Where the model's files name another end, the tokenizer's own ends a turn all the same.
        self._ends = {*speech.stop_token_ids, getattr(speech.tokenizer, "eos_id", None)}

    def rows(
        self, talk: Conversation, variables: dict[str, Any], turns: str
    ) -> list[tuple[int, Row]]:
        """The rows of a conversation, and of each how many of its messages it has.

        Args:
          talk: the conversation; at least one response is supervised.
          variables: what the template reads besides.
          turns: ``all`` is one row, ``each`` a row a supervised response, which ends it, ``last``
            the last of these rows, and "" ``each`` where ``all`` cannot be.

        Raises:
          ValueError: if a response cannot be told from what is before it.
        """
        responses = [i for i, own in enumerate(talk.supervised) if own]
        if turns in ("", "all"):
            try:
                return [self._row(talk, len(talk.messages), responses, variables)]
            except Rewritten:
                if turns == "all":
                    raise
        if turns == "last":
            responses = responses[-1:]
        return [self._row(talk, i + 1, [i], variables) for i in responses]

    def _row(
        self, talk: Conversation, num: int, responses: list[int], variables: dict[str, Any]
    ) -> tuple[int, Row]:
        """The first ``num`` messages, of which ``responses`` are supervised."""
        messages = talk.messages[:num]
        whole = self._tokens(messages, variables)
        supervised = np.zeros(len(whole), bool)
        for i in responses:
            before = self._before(messages[:i], variables, talk.places[i])
            after = whole if i + 1 == num else self._tokens(messages[: i + 1], variables)
            if after[: len(before)] != before or whole[: len(after)] != after:
                raise Rewritten(
                    f"the tokens before {talk.places[i]} change once it follows (the chat template "
                    "rewrites earlier turns, or a token reaches across the boundary), so those of "
                    f"the response cannot be told apart; {_ALONE if i + 1 == num else _SEVERAL}"
                )
            supervised[len(before) : self._end(after, len(before))] = True
        return num, Row(np.array(whole, np.int32), supervised)

    def _before(self, messages: list[Message], variables: dict[str, Any], place: str) -> list[int]:
        """The prompt of the response at ``place``."""
        try:
            return self._tokens(messages, variables, prompt=True)
        except ValueError as error:
            if messages:
                raise
            raise ValueError(
                f"{place} is a response to nothing ({error}); begin with a user's message, or give "
                "it weight 0."
            ) from None

    def _tokens(
        self, messages: list[Message], variables: dict[str, Any], *, prompt: bool = False
    ) -> list[int]:
        text = self._chat.render(messages, prompt=prompt, **variables)
        return self._tokenizer.encode(text, add_bos=False)

    def _end(self, tokens: list[int], begin: int) -> int:
        """Where the response that begins there ends: behind its first end token.

        Without one, what a template writes between turns, a line break behind a special token, is
        none of it.
        """
        for j in range(begin, len(tokens)):
            if tokens[j] in self._ends:
                return j + 1
        end = len(tokens)
        while end > begin and self._text(tokens[end - 1]).isspace():
            end -= 1
        special = end > begin and self._text(tokens[end - 1], skip_special_tokens=True) == ""
        return end if special else len(tokens)

    def _text(self, token: int, *, skip_special_tokens: bool = False) -> str:
        return self._tokenizer.decode([token], skip_special_tokens=skip_special_tokens)
