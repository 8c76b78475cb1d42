"""Records what a drafter would guess at every position of the target's greedy texts.

The real cycle runs, under a rule that accepts nothing: so each commits one token, the target's own,
and the text is the greedy one while the drafter proposes at every position of it. (What it proposes
depends on the committed text alone, whatever cycles led there: its law of path independence.) The
recording is a trace like any other; `specjax.trace.replay` scores any k with it.

It costs one target pass and one proposal a token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp

from specjax.checkpoint.drafters.named import as_spec
from specjax.checkpoint.load import Model
from specjax.core.types import KINDS, Array, Proposal, Verdict
from specjax.drafters import Spec
from specjax.drafters.checking import bind
from specjax.drafters.spec import ask
from specjax.prompts.ids import Prompts
from specjax.recording import complete, finish_reason
from specjax.request import prepare
from specjax.session import Row, Session
from specjax.session.requests import check_requests
from specjax.text import Reading
from specjax.trace.trace import Trace
from specjax.verify.base import VerifyKeys
from specjax.verify.greedy import Greedy, GreedyLaw

CYCLES_PER_LOOK = 16


@dataclasses.dataclass(frozen=True)
class OneByOne(Greedy):
    """Accepts nothing: each cycle commits the target's most likely token alone.

    At any temperature: the draft's law is asked for at temperature 1.
    """

    name: ClassVar[str] = "one_by_one"
    takes: ClassVar[frozenset[str]] = frozenset(KINDS)
    greedy_only: ClassVar[bool] = False
    trees: ClassVar[bool] = False

    def law(self, logits: Array, proposal: Proposal) -> GreedyLaw:
        """See ``Rule.law``."""
        law = super().law(logits, proposal)
        assert isinstance(law, GreedyLaw), "a recording is of chains"
        return dataclasses.replace(law, survival=jnp.zeros_like(law.survival))

    def sample(self, keys: VerifyKeys, law: GreedyLaw) -> Verdict:  # type: ignore[override]
        """See ``Rule.sample``; no key is consumed."""
        del keys
        # Zero; but the compiler must not know, or the caches are copied (`decode.cycle`).
        return Verdict(tokens=law.best, num_accepted=jnp.minimum(law.best[0], 0))


def record(
    target: Model,
    spec: Spec | str,
    prompts: Prompts,
    *,
    max_new_tokens: int | Sequence[int] = 128,
    stop_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
    batch: int = 8,
) -> Trace:
    """Writes each prompt's greedy text, with the guesses at every position of it.

    Args:
      target: from `specjax.load`.
      spec: the drafter or its name, with the largest k that will be asked for.
      prompts: one or several, in any form that `generate` takes.
      max_new_tokens: one number or one a prompt.
      stop_token_ids: instead of the checkpoint's own; one list, or one a prompt.
      batch: prompts that are decoded together. The last batch is filled up.

    Returns:
      A trace whose every cycle commits one token, with `Detail`: ``q`` is the draft's probability
      of its guess at temperature 1 where it has one (1 for a drafter that has none), so that
      stopping rules can ask for it. ``setup["recording"]`` holds ``exact_k``, the k for which
      replay is exact, and ``beyond``, up to K tokens that the target would say behind each end.

    Raises:
      ValueError: in one line, on a request that cannot be served, or a drafter without guesses.
    """
    if batch < 1:
        raise ValueError(f"batch={batch}: must be at least 1.")
    rows, _ = prepare(target, prompts, max_new_tokens, 0, (), stop_token_ids, {"temperature": 1.0})
    spec = as_spec(spec, target)
    check_requests(target, spec, rows, None)
    traces: list[Trace] = []
    beyond: list[list[int]] = []
    k = 0
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        full = part + part[-1:] * (min(batch, len(rows)) - len(part))
        trace, after, k = _record_batch(target, spec, full)
        traces.append(
            dataclasses.replace(trace, rows=trace.rows[: len(part)], texts=trace.texts[: len(part)])
        )
        beyond += after[: len(part)]
    joined = Trace.join(traces)
    exact = list(range(1, k + 1)) if ask(spec, "nested") else [k]
    setup: dict[str, Any] = {
        **joined.setup,
        "rule": "greedy",
        "kind": "one_hot",
        "options": {**joined.setup["options"], "temperature": 0.0},
        "recording": {"exact_k": exact, "beyond": beyond},
    }
    return dataclasses.replace(joined, setup=setup)


def _record_batch(
    target: Model, spec: Spec, rows: Sequence[Row]
) -> tuple[Trace, list[list[int]], int]:
    """The recording of one batch, what is behind each text's end, and K."""
    num_draft = bind(spec, target, "sampled")[0].num_draft
    if num_draft < 1:
        raise ValueError("A drafter that guesses nothing leaves nothing to record; use another.")
    longest = target.config.max_position_embeddings
    going = [
        dataclasses.replace(
            row,
            max_new_tokens=min(row.max_new_tokens + num_draft, longest - len(row.prompt)),
            stop_token_ids=(),
        )
        for row in rows
    ]
    # At temperature 1 the likeliest token, and its probability is noted.
    session = Session(target, spec, going, rule=OneByOne(), details=True, likeliest=True)
    while not session.done.all():
        session.advance(CYCLES_PER_LOOK)
        texts = session.new_tokens()
        session.finish(
            [b for b, text in enumerate(texts) if len(text) >= _end(rows[b], text) + num_draft]
        )
    trace, texts = session.trace(), session.new_tokens()
    ends = [_end(row, text) for row, text in zip(rows, texts)]
    for b, end in enumerate(ends):
        trace = trace.cut(b, end)
    finish = [finish_reason(row, text[:end]) for row, text, end in zip(rows, texts, ends)]
    beyond = [text[end : end + num_draft] for text, end in zip(texts, ends)]
    kept = zip(rows, texts, ends)
    said = [Reading.of(target.tokenizer, row.prompt, text[:end]) for row, text, end in kept]
    return complete(trace, session, rows, finish, said), beyond, num_draft


def _end(row: Row, text: Sequence[int]) -> int:
    """Where a text ends: behind its first stop token, or at its limit."""
    stops = (i + 1 for i, token in enumerate(text) if token in row.stop_token_ids)
    return min(next(stops, row.max_new_tokens), row.max_new_tokens)
