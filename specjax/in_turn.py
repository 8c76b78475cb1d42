"""`generate_each`: many prompts, of which a few are decoded together at any time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from specjax.checkpoint.drafters.named import as_spec
from specjax.checkpoint.load import Model
from specjax.core.options import check_count
from specjax.drafters import Spec
from specjax.prompts.ids import Prompts
from specjax.recording import complete_row, finish_reason
from specjax.request import prepare
from specjax.session import Row
from specjax.session.refill import Finished, Refill
from specjax.stopping import StopStrings
from specjax.trace.trace import Trace
from specjax.verify.base import Rule

AHEAD = 16  # batches of prompts that may be begun behind the first that has not ended


@dataclasses.dataclass(frozen=True)
class Answer:
    """What became of one prompt. Times are seconds since the first prompt was begun."""

    index: int  # of the prompts
    text: str  # without the prompt; cut before a stop string
    tokens: list[int]  # the new tokens, a stop token included
    prompt_tokens: list[int]
    finish: str  # "stop" or "length"
    trace: Trace  # of its one row
    begin: float  # when its prompt began to be fed
    freed: float  # when the row that it moved into was free
    end: float  # when its last cycle had run


def generate_each(
    target: Model,
    drafter: Spec | str | None,
    prompts: Prompts,
    *,
    batch_size: int,
    max_new_tokens: int | Sequence[int] = 128,
    seed: int | Sequence[int] = 0,
    rule: str | Rule | None = None,
    stop: str | Sequence[str] = (),
    stop_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
    chunk: int | None = None,
    details: bool = False,
    template_args: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **options: Any,
) -> Turns:
    """Continues each prompt as `generate` does, and brings each answer in the prompts' order.

    ``batch_size`` rows decode at any time; where a text ends, the next prompt moves in. The text of
    a prompt, and its cycles, are those that it has alone. Other arguments and errors are those of
    `generate`; what cannot be served is refused here, before anything is fed.

    Returns:
      An iterable of `Answer`, which can be gone through once.
    """
    rows, stops = prepare(
        target, prompts, max_new_tokens, seed, stop, stop_token_ids, options, template_args, tools
    )
    how: dict[str, Any] = {"rule": rule, "chunk": chunk, "details": details}
    return Turns(target, drafter, rows, stops, batch_size=batch_size, **how)


class Turns:
    """Requests that are decoded in turn. Iterating brings their answers, in their order."""

    def __init__(
        self,
        target: Model,
        drafter: Spec | str | None,
        rows: Sequence[Row],
        stops: Sequence[str],
        *,
        batch_size: int,
        **how: Any,
    ):
        """Checks everything; ``how`` goes to `Refill`. Raises ValueError as it does."""
        self._target, self._rows, self._stops = target, rows, stops
        self._watches: dict[int, StopStrings] = {}
        check_count("batch_size", batch_size)
        self.session = Refill(
            *(target, as_spec(drafter, target), rows),
            batch_size=batch_size,
            ahead=AHEAD * batch_size,
            over=self.over if stops else None,
            **how,
        )

    @property
    def rule(self) -> str:
        return self.session.rule.name

    @property
    def seconds(self) -> float:
        """Since the first prompt was begun, without compiling."""
        return self.session.clock.seconds

    @property
    def compile_seconds(self) -> float:
        return self.session.clock.compiling

    @property
    def occupancy(self) -> float:
        """The share of all cycles of all rows so far that a request used."""
        return self.session.occupancy

    def over(self, index: int, tokens: list[int]) -> bool:
        """Whether a stop string is completed in the text of a request."""
        watch = self._watch(index)
        watch.look([tokens])
        return watch.ends[0] is not None

    def __iter__(self) -> Iterator[Answer]:
        held: dict[int, Answer] = {}
        following = 0
        for finished in self.session:
            held[finished.index] = self.answer(finished)
            while following in held:
                yield held.pop(following)
                following += 1

    def answer(self, finished: Finished) -> Answer:
        """What a request became, up to a stop string."""
        index, tokens, trace = finished.index, finished.tokens, finished.trace
        row, watch = self._rows[index], self._watch(index)
        del self._watches[index]
        watch.look([tokens])
        (end,), (reading,) = watch.ends, watch.texts
        reading.end()
        finish = finish_reason(row, tokens)
        if end is not None:
            tokens, finish, trace = tokens[: end.tokens], "stop", trace.cut(0, end.tokens)
        trace = complete_row(trace.rows[0], self.session, [row], 0, finish, reading)
        about = dataclasses.replace(trace.texts[0], prefilled=finished.entered)
        setup = {**trace.setup, "batch": self.session.num_rows, "in_turn": True}
        trace = dataclasses.replace(trace, texts=(about,), setup=setup)
        text = "".join(about.pieces)
        return Answer(
            index=index,
            text=text if end is None else text[: end.characters],
            tokens=tokens,
            prompt_tokens=list(row.prompt),
            finish=finish,
            trace=trace,
            begin=finished.begin,
            freed=finished.freed,
            end=finished.end,
        )

    @staticmethod
    def joined(answers: Sequence[Answer]) -> Trace:
        """The traces of answers as one, a row each."""
        setups = [answer.trace.setup for answer in answers]
        options = [setup["options"] for setup in setups]
        same = all(one == options[0] for one in options)
        return Trace(
            tuple(answer.trace.rows[0] for answer in answers),
            tuple(answer.trace.texts[0] for answer in answers),
            {**setups[0], "options": options[0] if same else options},
        )

    def _watch(self, index: int) -> StopStrings:
        if index not in self._watches:
            prompt = self._rows[index].prompt
            self._watches[index] = StopStrings(self._target, self._stops, [prompt])
        return self._watches[index]
