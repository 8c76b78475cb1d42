"""The text of new tokens: what they add to the text of the prompt before them.

    text = decode(prompt + new) minus decode(prompt)

Tokens have no text of their own: decoders drop the space of the first token that they see, a
character may be spread over several tokens, and SentencePiece reads a run of bytes as a whole.
Generated text is read here, once: stop strings look at a `Reading`, streams take from it, and its
pieces are what outputs, traces, labels, records and pictures show.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from specjax.checkpoint.tokenizer import Tokenizer

Span = tuple[int, str]  # the index of a new token, characters that it completes

_UNFINISHED = "\ufffd"
# Tokens behind which a decoder has forgotten what was before: no character is longer than 4 bytes.
_ENOUGH = 8
_WINDOW, _TAIL = 16, 64


class Reading:
    """The text of one row. Each new token is read once, however many ask what it says."""

    def __init__(self, tokenizer: Tokenizer | None, prompt: Sequence[int]):
        """Without a tokenizer there is no text, and no pieces."""
        self._reader = None if tokenizer is None else Reader(tokenizer, prompt)
        self._left: list[Span] = []  # settled, and not taken
        self._pieces: list[str] = []
        self.count = 0  # new tokens so far

    @classmethod
    def of(cls, tokenizer: Tokenizer | None, prompt: Sequence[int], ids: Sequence[int]) -> Reading:
        """Read to its end at once."""
        reading = cls(tokenizer, prompt)
        reading.read(ids)
        reading.end()
        return reading

    def read(self, ids: Sequence[int]) -> str:
        """Takes in the next tokens. Returns the text that they settled."""
        self.count += len(ids)
        if self._reader is None:
            return ""
        self._pieces += [""] * len(ids)
        return self._note(self._reader.push(ids))

    def end(self) -> None:
        """Nothing follows: what was open is settled as it reads now."""
        if self._reader is not None:
            self._note(self._reader.flush())

    def _note(self, spans: Sequence[Span]) -> str:
        for index, text in spans:
            self._pieces[index] += text
        self._left += spans
        return "".join(text for _, text in spans)

    @property
    def open(self) -> str:
        """How what is not settled reads so far."""
        return "" if self._reader is None else self._reader.open

    @property
    def pieces(self) -> tuple[str, ...]:
        """[count] The settled characters that each new token completes: together, the text."""
        return tuple(self._pieces)

    @property
    def left(self) -> str:
        """The settled characters that were not taken."""
        return "".join(text for _, text in self._left)

    def take(self, length: int) -> list[Span]:
        """The next ``length`` settled characters, or those of them that are there."""
        taken = []
        while self._left and length > 0:
            index, text = self._left.pop(0)
            if len(text) > length:
                self._left.insert(0, (index, text[length:]))
            taken.append((index, text[:length]))
            length -= len(text)
        return taken


def token_text(tokenizer: Tokenizer, prompt: Sequence[int], token: int) -> str:
    """The text of one token behind ``prompt``, that of a special token included."""
    reader = Reader(tokenizer, prompt, skip_special_tokens=False)
    return "".join(text for _, text in [*reader.push([token]), *reader.flush()])


def common(a: str, b: str) -> int:
    """How many characters two texts have in common from their beginning."""
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


class Reader:
    """Reads new tokens as they come; what it has handed out never changes.

    At every moment the text of all tokens so far is what was handed out, followed by `open`: an
    unfinished character, or a run of byte tokens, which is read otherwise when it goes on. Only a
    window of tokens is decoded, so the cost is linear in their number; the text is that of
    decoding the whole all the same. A character that begins in the prompt is new if new tokens
    complete it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
    ):
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._special = frozenset(tokenizer.special_tokens.values()) if skip_special_tokens else ()
        self._count = 0  # new tokens so far
        self._ids = [int(i) for i in prompt[-_TAIL:]]  # the window
        begin = self._context()
        if begin == 0 and len(prompt) > _TAIL:  # no place to begin in the last ones
            self._ids = [int(i) for i in prompt]
            begin = self._context()
        self._ids = self._ids[begin:]
        self._prompt = self._decode(self._ids)  # its text in the window
        self._given = 0  # characters of the window's text that were handed out
        self._held = self._prompt.endswith(_UNFINISHED)  # whether the last one may still change
        self._narrow_at = max(_WINDOW, 2 * len(self._ids))
        self._run = _Run()
        for token in self._ids:
            self._follow(token)
        self._run.foreign = bool(self._run)

    def push(self, ids: Iterable[int]) -> list[Span]:
        """The text that is settled now that these tokens followed, by the token that completes it.

        An index may occur again later, with more of the same token's text.
        """
        spans: list[Span] = []
        for token in map(int, ids):
            run = self._run
            if token in self._special and self._ids and self._ids[-1] in self._special:
                self._ids.pop()  # of several special tokens in a row the last one matters at most
            self._ids.append(token)
            self._follow(token)
            if not self._run:
                spans += self._settle(run.spans())
            self._count += 1
        return spans

    def flush(self) -> list[Span]:
        """The text that was still open: nothing follows."""
        self._count -= 1  # it belongs to the last token
        spans = self._settle(self._run.spans(), final=True)
        self._count, self._run = self._count + 1, _Run()
        return spans

    @property
    def open(self) -> str:
        """How what is not settled reads so far."""
        if self._run and not self._run.foreign and not self._held and (self._given or self._prompt):
            return self._run.text
        now = self._decode(self._ids)
        return now[self._begin(now) :]

    def _settle(self, run: list[Span], *, final: bool = False) -> list[Span]:
        """Hands out what no later token can change; ``run`` is what byte tokens in it completed."""
        now = self._decode(self._ids)
        begin = self._begin(now)
        held = now.endswith(_UNFINISHED) and not final
        text = now[begin : len(now) - held]
        self._held = held
        if text:
            self._given = begin + len(text)
            self._prompt = ""  # its last character is settled, too
        spans = []
        if text.startswith("".join(part for _, part in run)):
            spans, text = run, text[sum(len(part) for _, part in run) :]
        if text:
            spans = [*spans, (max(self._count, 0), text)]
        if len(self._ids) > self._narrow_at and not self._prompt and not self._run:
            self._narrow(len(now) - self._given)
        return spans

    def _begin(self, now: str) -> int:
        """How much of the window's text ``now`` is old: handed out, or the prompt's."""
        return max(self._given, common(self._prompt, now) if self._prompt else 0)

    def _narrow(self, left: int) -> None:
        """Forgets the beginning of the window; ``left`` characters are not handed out."""
        ids = self._ids[self._context() :]
        given = len(self._decode(ids)) - left
        if given > 0:
            self._ids, self._given = ids, given
        self._narrow_at = max(_WINDOW, 2 * len(self._ids))

    def _context(self) -> int:
        """Where the window may begin so that what follows it reads as behind all of it."""
        size = 1
        while size < len(self._ids):
            tail = self._ids[-size:]
            first = next((token for token in tail if token not in self._special), -1)
            # Not inside of a run of bytes, which goes on across special tokens.
            text = "" if first in self._tokenizer.byte_tokens else self._decode(tail)
            # Whatever is dropped from the beginning of a text was dropped from this one already.
            if text and (_UNFINISHED not in text or size >= _ENOUGH):
                return len(self._ids) - size
            size *= 2
        return 0

    def _follow(self, token: int) -> None:
        """Keeps track of the run of byte tokens that ``token`` continues or ends."""
        value = self._tokenizer.byte_tokens.get(token)
        if value is not None:
            self._run.add(self._count, value)
        elif token not in self._special:  # decoders join bytes across those
            self._run = _Run()

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)


class _Run:
    """A run of byte tokens: read as UTF-8 if all of it is, else as U+FFFD for each byte."""

    def __init__(self) -> None:
        self.foreign = False  # it begins in the prompt
        self._tokens: list[int] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._spans: list[Span] = []
        self._text = ""
        self._valid = True

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def add(self, token: int, value: int) -> None:
        """Takes in the byte of the token with that index."""
        self._tokens.append(token)
        if not self._valid:
            return
        try:
            text = self._decoder.decode(bytes([value]))
        except UnicodeDecodeError:
            self._valid = False
            return
        if text:
            self._spans.append((token, text))
            self._text += text

    @property
    def _whole(self) -> bool:
        return self._valid and not self._decoder.getstate()[0]

    @property
    def text(self) -> str:
        return self._text if self._whole else _UNFINISHED * len(self._tokens)

    def spans(self) -> list[Span]:
        """Its text by the token that completes it; none if a part of it is the prompt's."""
        if self.foreign:
            return []
        return self._spans if self._whole else [(token, _UNFINISHED) for token in self._tokens]
