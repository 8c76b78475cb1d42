"""`generate` and `stream`: prompts in, text out, in a few obvious lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from specjax.checkpoint.drafters.named import as_spec
from specjax.checkpoint.load import Model
from specjax.core.options import check_count
from specjax.drafters import Spec
from specjax.drafters.checking import name_of
from specjax.in_turn import Turns
from specjax.prompts.ids import Prompts
from specjax.recording import complete, complete_row, finish_reason
from specjax.request import prepare
from specjax.session import Row, Session
from specjax.session.limits import check_memory
from specjax.session.memory import Memory, open_session
from specjax.session.refill import check_rows
from specjax.session.requests import check_requests
from specjax.stopping import StopStrings, held_back
from specjax.trace.trace import Cycle, Trace
from specjax.verify.base import Rule

# Cycles between two looks of the host where it has something to look for.
CYCLES_PER_LOOK = 8


@dataclasses.dataclass(frozen=True)
class Output:
    """What was generated. Lists have one entry a prompt."""

    text: list[str]  # without the prompt; cut before a stop string
    tokens: list[list[int]]  # the new tokens, a stop token included
    prompt_tokens: list[list[int]]
    finish: list[str]  # "stop" or "length"
    trace: Trace
    seconds: float  # of prefill and decoding, by the trace's clock: without compiling
    compile_seconds: float  # what the first call of a shape spent on its programs
    rule: str

    def __repr__(self) -> str:
        size = f"{len(self.text)} texts, {sum(map(len, self.tokens))} tokens"
        speed = f"tau {self.tau:.2f}, {self.tokens_per_second:.0f} tokens/s"
        return f"Output({size}, {speed}, rule {self.rule})"

    @property
    def tau(self) -> float:
        """Committed tokens per target pass, the target's own token included."""
        return self.trace.tau

    @property
    def tokens_per_second(self) -> float:
        return sum(map(len, self.tokens)) / self.seconds


@dataclasses.dataclass(frozen=True)
class Piece:
    """What one row gained in one device call."""

    row: int
    prompt_tokens: list[int]  # of the row
    text: str
    spans: list[tuple[str, str]]  # the text in parts, each with the label of what completed it
    tokens: list[int]
    labels: list[str]  # of each token: accepted, correction or bonus (`specjax.trace`)
    cycles: tuple[Cycle, ...]  # that brought them
    finish: str | None  # "stop" or "length" with the row's last piece
    trace: Trace | None = None  # of the whole row, complete, with its last piece


def generate(
    target: Model,
    drafter: Spec | str | None,
    prompts: Prompts,
    *,
    max_new_tokens: int | Sequence[int] = 128,
    seed: int | Sequence[int] = 0,
    rule: str | Rule | None = None,
    stop: str | Sequence[str] = (),
    stop_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
    host_loop: bool = False,
    chunk: int | None = None,
    details: bool = False,
    memory: Memory | None = None,
    batch_size: int | None = None,
    template_args: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **options: Any,
) -> Output:
    """Continues each prompt; the text is distributed as if the target alone had written it.

    Args:
      target: from `specjax.load`.
      drafter: from `specjax.drafters` or `specjax.load_drafter`; or a name, NAME[:CHECKPOINT][:K],
        such as "ngram:4" or "demo:dflash"; None decodes plainly.
      prompts: one or several, each a string, token ids (a list or an array), what a tokenizer of
        Transformers returns, or a conversation: a list of messages (docs/inputs.md).
      max_new_tokens: the most tokens to add, one number or one a prompt.
      seed: one number or one a prompt. Prompt i of a single ``seed`` uses ``seed + i``; a row's
        text depends on its own seed and prompt only.
      rule: the verification rule, or its name in `specjax.verify.RULES`; None: the best for the
        drafter and the temperature.
      stop: strings that end a row with the token that completes one; they are cut off. A special
        token's text means that token.
      stop_token_ids: instead of the checkpoint's own; one list, or one a prompt.
      host_loop: one device call a cycle, to measure what the loop on the device is worth.
      chunk: the most tokens of a prompt that one prefill pass feeds. None: 256; without
        ``batch_size``, up to 2048 (GPUs) and 1024 (TPUs) of all prompts together.
      details: whether the trace notes probabilities (`trace.trace.Detail`): a softmax a cycle.
      memory: what earlier calls left, so that what they fed is not fed again; see `Memory`.
      batch_size: how many prompts are decoded together; where a text ends, the next prompt moves
        in. No text depends on it. None: all of them.
      template_args: for the target's chat template, such as ``{"enable_thinking": False}``.
      tools: the functions that the template tells the target about, as JSON schemas.
      **options: the fields of `specjax.Options`, each one value or one a prompt.

    Raises:
      ValueError: in one line, on anything that cannot be done exactly as asked.
    """
    rows, stops = prepare(
        target, prompts, max_new_tokens, seed, stop, stop_token_ids, options, template_args, tools
    )
    how: dict[str, Any] = {"rule": rule, "chunk": chunk, "details": details}
    _check_loop(host_loop, bool(stops), memory, batch_size)
    if batch_size is not None:
        size = min(batch_size, max(len(rows), 1))
        return output_of(Turns(target, drafter, rows, stops, batch_size=size, **how))
    session = open_session(target, drafter, rows, memory, **how)
    watch = StopStrings(target, stops, [row.prompt for row in rows])
    _run(session, watch if stops else None, host_loop)
    return _output(session, watch, rows)


def _check_loop(host_loop: bool, stops: bool, memory: Any, batch_size: Any) -> None:
    """Raises ValueError on ways of decoding that exclude each other."""
    if host_loop and stops:
        raise ValueError("host_loop does not look for stop strings; leave one of the two out.")
    if batch_size is None:
        return
    check_count("batch_size", batch_size)
    if host_loop or memory is not None:
        raise ValueError("batch_size goes with neither host_loop nor memory; leave it out.")


def output_of(turns: Turns) -> Output:
    """All answers of requests that are decoded in turn (`generate_each`)."""
    answers = list(turns)
    return Output(
        text=[answer.text for answer in answers],
        tokens=[answer.tokens for answer in answers],
        prompt_tokens=[answer.prompt_tokens for answer in answers],
        finish=[answer.finish for answer in answers],
        trace=Turns.joined(answers),
        seconds=turns.seconds,
        compile_seconds=turns.compile_seconds,
        rule=turns.rule,
    )


def _run(session: Session, watch: StopStrings | None, host_loop: bool) -> None:
    """Decodes to the end of every row; ``watch`` ends those in which a stop string is completed."""
    if watch is not None:
        while not session.done.all():
            session.advance(CYCLES_PER_LOOK)
            session.finish(watch.look(session.new_tokens()))
    elif host_loop:
        session.advance_by_host()
    else:
        session.advance()


def _output(session: Session, watch: StopStrings, rows: Sequence[Row]) -> Output:
    """What a session that is done has written, up to stop strings."""
    tokens = session.new_tokens()
    seconds = session.clock.seconds

    finish = [finish_reason(row, t) for row, t in zip(rows, tokens)]
    trace = session.trace()
    watch.look(tokens)
    for b, end in enumerate(watch.ends):
        watch.texts[b].end()
        if end is not None:
            tokens[b], finish[b] = tokens[b][: end.tokens], "stop"
            trace = trace.cut(b, end.tokens)
    trace = complete(trace, session, rows, finish, watch.texts)
    text = ["".join(told.pieces) for told in trace.texts]
    return Output(
        text=[t if end is None else t[: end.characters] for t, end in zip(text, watch.ends)],
        tokens=tokens,
        prompt_tokens=[list(r.prompt) for r in rows],
        finish=finish,
        trace=trace,
        seconds=seconds,
        compile_seconds=session.clock.compiling,
        rule=session.rule.name,
    )


def stream(
    target: Model,
    drafter: Spec | str | None,
    prompts: Prompts,
    *,
    max_new_tokens: int | Sequence[int] = 128,
    seed: int | Sequence[int] = 0,
    rule: str | Rule | None = None,
    stop: str | Sequence[str] = (),
    stop_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
    cycles_per_call: int = 4,
    chunk: int | None = None,
    details: bool = False,
    memory: Memory | None = None,
    template_args: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **options: Any,
) -> Iterator[Piece]:
    """Generates as `generate` does and yields text as it comes, by ``cycles_per_call`` cycles.

    With stop strings, text that could be the beginning of one is held back until it is decided.
    """
    check_count("cycles_per_call", cycles_per_call)
    rows, stops = prepare(
        target, prompts, max_new_tokens, seed, stop, stop_token_ids, options, template_args, tools
    )
    session = open_session(target, drafter, rows, memory, rule=rule, chunk=chunk, details=details)
    return _stream(target, session, rows, stops, cycles_per_call)


def check(
    target: Model,
    drafter: Spec | str | None,
    prompts: Prompts,
    *,
    max_new_tokens: int | Sequence[int] = 128,
    seed: int | Sequence[int] = 0,
    rule: str | Rule | None = None,
    stop: str | Sequence[str] = (),
    stop_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
    template_args: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chunk: int | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> None:
    """Raises the ValueError that `generate` would raise, without generating anything.

    ``batch_size`` is how many of the prompts will be decoded together; None: all.
    """
    rows, _ = prepare(
        target, prompts, max_new_tokens, seed, stop, stop_token_ids, options, template_args, tools
    )
    if chunk is not None:
        check_count("chunk", chunk)
    drafter = as_spec(drafter, target)
    bound, _ = check_requests(target, drafter, rows, rule)
    check_memory(target, bound, [len(r.prompt) + r.max_new_tokens for r in rows], batch_size)
    if batch_size is not None:
        check_rows(bound, name_of(drafter))


def _stream(
    target: Model, session: Session, rows: list[Row], stops: list[str], cycles: int
) -> Iterator[Piece]:
    watch = StopStrings(target, stops, [row.prompt for row in rows])
    sent = [0] * len(rows)  # tokens handed out
    sent_cycles = [0] * len(rows)
    sent_text = [0] * len(rows)
    open_rows = set(range(len(rows)))
    turn = session.turns
    while open_rows:
        if session.turns != turn:
            raise ValueError(
                "Another call has gone on with this memory: read a text to its end before, or give "
                "each a Memory() of its own."
            )
        session.advance(cycles)
        tokens, done = session.new_tokens(), session.done
        session.finish(watch.look(tokens))
        trace = session.trace()
        for b in sorted(open_rows):
            end = watch.ends[b]
            over = bool(done[b]) or end is not None
            last = len(tokens[b]) if end is None else end.tokens
            new = tokens[b][sent[b] : last]
            if not new and not over:
                continue
            text = watch.texts[b]
            if over:
                text.end()
            ready = len(text.left) - (0 if over else held_back(text.left, stops))
            if end is not None:
                ready = min(end.characters - sent_text[b], ready)
            spans = text.take(ready)
            cycles_so_far, labels = trace.cut(b, last).rows[b], trace.labels(b)
            reason, whole = None, None
            if over:
                reason = "stop" if end is not None else finish_reason(rows[b], tokens[b])
                whole = complete_row(cycles_so_far, session, rows, b, reason, text)
                open_rows.discard(b)
            yield Piece(
                row=b,
                prompt_tokens=list(rows[b].prompt),
                text="".join(part for _, part in spans),
                spans=[(part, labels[index]) for index, part in spans],
                tokens=new,
                labels=labels[sent[b] : last],
                cycles=cycles_so_far[sent_cycles[b] :],
                finish=reason,
                trace=whole,
            )
            sent_cycles[b] = len(cycles_so_far)
            sent[b], sent_text[b] = last, sent_text[b] + max(ready, 0)
