"""Stop strings: a text ends where reading it token by token would have ended it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

from specjax.checkpoint.load import Model
from specjax.prompts.forms import check_text, is_array, is_list, read_array, type_name
from specjax.text import Reading


class StopStringWarning(UserWarning):
    """A stop string that can hardly be met."""


@dataclasses.dataclass(frozen=True)
class End:
    """Where a stop string ended a row."""

    characters: int  # of the new text before the string
    tokens: int  # new tokens, up to the one that completed it


def read_stops(target: Model, stop: Any) -> list[str]:
    """The stop strings of a request: one, or a list or array of them.

    Raises:
      ValueError: if one of them is empty or no string, or the target has no tokenizer.
    """
    if is_array(stop):
        stop = read_array(stop, "stop", kinds="OUT").tolist() if stop.shape else stop.item()
    if not isinstance(stop, str) and not is_list(stop):
        raise ValueError(f"stop is {type_name(stop)}: give a string, or a list of strings.")
    stops = [stop] if isinstance(stop, str) else list(stop)
    for string in stops:
        if not isinstance(string, str):
            raise ValueError(f"stop holds {string!r}: strings only; ids go to stop_token_ids.")
        if not string:
            raise ValueError(
                "A stop string is empty, and would end every text at once; leave it out."
            )
        check_text(string, f"Stop string {string!r}")
    if stops and target.tokenizer is None:
        raise ValueError("Stop strings need a tokenizer, and this model has none: use token ids.")
    for string in stops:
        for special in [] if target.tokenizer is None else target.tokenizer.special_tokens:
            if special in string and special != string:
                warnings.warn(
                    f"stop string {string!r} holds the special token {special!r}, which no text "
                    "holds: it ends a text only where it is spelled; to end at the token, give it "
                    "alone.",
                    StopStringWarning,
                    stacklevel=4,
                )
    return [str(string) for string in stops]


def special_ids(target: Model, stops: Sequence[str]) -> tuple[int, ...]:
    """The special tokens that stop strings name: texts leave them out, so the ids end a row."""
    if target.tokenizer is None:
        return ()
    found = (target.tokenizer.special_tokens.get(string) for string in stops)
    return tuple(i for i in found if i is not None and i < target.config.vocab_size)


class StopStrings:
    """Reads the text of each row on the host, and ends it where a stop string is completed."""

    def __init__(self, target: Model, stops: Sequence[str], prompts: Sequence[Sequence[int]]):
        """Without ``stops`` the texts are read all the same."""
        self.texts = [Reading(target.tokenizer, prompt) for prompt in prompts]
        self._rows = [_Row(stops, text) for text in self.texts]
        self.ends: list[End | None] = [None] * len(prompts)

    def look(self, tokens: Sequence[Sequence[int]]) -> list[int]:
        """The rows in which a stop string has newly been completed; ``tokens`` are all so far."""
        found = []
        for b, (row, ids) in enumerate(zip(self._rows, tokens)):
            if self.ends[b] is None:
                self.ends[b] = row.look(ids)
                if self.ends[b] is not None:
                    found.append(b)
        return found


class _Row:
    """Looks through one row's text, token by token."""

    def __init__(self, stops: Sequence[str], text: Reading):
        self._stops, self._text = stops, text
        self._keep = max(map(len, stops), default=1) - 1
        self._end = ""  # of the settled text: where a stop string may have begun
        self._before = 0  # characters before that

    def look(self, ids: Sequence[int]) -> End | None:
        new = ids[self._text.count :]
        if not self._stops:
            self._text.read(new)
            return None
        for token in new:
            text = self._end + self._text.read([token])
            whole = text + self._text.open
            places = [place for s in self._stops if (place := whole.find(s)) >= 0]
            if places:
                return End(self._before + min(places), self._text.count)
            cut = max(len(text) - self._keep, 0)
            self._end, self._before = text[cut:], self._before + cut
        return None


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of ``text`` may be the beginning of a stop string."""
    return max((n for s in stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
