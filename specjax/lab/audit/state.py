"""Long texts at temperature 0, and slots that must not be read."""

from __future__ import annotations

import numpy as np

from specjax.checkpoint.load import Model
from specjax.lab.audit.batch import Batch, has_cache, poison
from specjax.lab.audit.evidence import Evidence, Observed, Parting
from specjax.lab.audit.laws import VOCAB
from specjax.lab.audit.options import PENALTIES, reference
from specjax.lab.audit.report import Check
from specjax.lab.audit.targets import full_logits
from specjax.session import Row

TIE = 1e-4  # of two logits that differ by less, float32 may find either the larger


def check_greedy(evidence: Evidence) -> Check:
    """At temperature 0 the text is the target's own, whatever is guessed."""
    observed = evidence.cold
    rows = observed.batch.rows
    want, close = greedy_texts(evidence.subject.target, rows)
    found, first = Parting.of(observed.texts, want, close), None
    if found.first is not None:
        b, n = found.first
        first = (
            f"Prompt {list(rows[b].prompt)}, {_asked(rows[b])}: after {want[b, :n].tolist()} the "
            f"target's likeliest token is {_token(want[b, n])}, and the text has "
            f"{_token(observed.texts[b, n])}."
        )
    return Check.unless(
        name="greedy",
        tested=(
            f"{found.compared} tokens of {len(rows)} texts at temperature 0, with and without "
            "penalties and stop tokens, against one pass a token without a cache"
        ),
        counterexample=first,
    )


def greedy_texts(target: Model, rows: tuple[Row, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The texts [B, new], padded with V after a stop token; where the best two are too close."""
    new = max(r.max_new_tokens for r in rows)
    fed = np.zeros((len(rows), max(len(r.prompt) for r in rows) + new), np.int32)
    for row, r in zip(fed, rows):
        row[: len(r.prompt)] = r.prompt
    texts, close = np.full((len(rows), new), VOCAB), np.zeros((len(rows), new), bool)
    done = np.zeros(len(rows), bool)
    for n in range(new):
        logits = full_logits(target, fed)
        for b in np.flatnonzero(~done):
            r, place = rows[b], len(rows[b].prompt) + n
            unheated = reference(
                logits[b, place - 1].tolist(), r.options, r.prompt, texts[b, :n].tolist(), PENALTIES
            )
            ordered = np.sort(unheated)
            close[b, n] = ordered[-1] - ordered[-2] < TIE
            texts[b, n] = fed[b, place] = int(unheated.argmax())
            done[b] = texts[b, n] in r.stop_token_ids
    return texts, close


def check_stale(evidence: Evidence) -> Check:
    """After each cycle every slot that is not valid is poisoned; nothing changes."""
    subject = evidence.subject
    clean = [evidence.cold] if subject.cold is not None else []
    clean += [evidence.hot] if subject.hot is not None else []
    first, cached, cycles = None, False, 0
    for observed in clean:
        dirty, keeps, ran = decode_poisoned(observed.batch)
        cached, cycles = cached or keeps, cycles + ran
        first = first or _difference(observed, dirty)
    whose = "the target's and the drafter's caches" if cached else "the target's cache"
    return Check.unless(
        name="stale",
        tested=(
            f"{sum(len(o.batch.rows) for o in clean)} texts decoded again with the stale slots of "
            f"{whose} poisoned (keys NaN, values the largest finite number) and the tokens behind "
            f"the text changed before each of {cycles} cycles: texts, guesses and verdicts are the "
            "same"
        ),
        counterexample=first,
    )


def decode_poisoned(batch: Batch) -> tuple[Observed, bool, int]:
    """The batch decoded a cycle at a time, whether the drafter has a cache, and the cycles."""
    state, ran = batch.start(), 0
    cached = has_cache(state)
    # Each cycle commits a token to every row that is not done; a row that gains none has failed.
    while not np.asarray(state.done).all() and ran < batch.new:
        state = batch.advance(poison(state), 1)
        ran += 1
    seen = Observed(
        batch=batch,
        texts=batch.texts(state, VOCAB),
        guesses=(),
        accepted=np.asarray(state.record.accepted),
        proposed=np.asarray(state.record.proposed),
        committed=np.asarray(state.record.committed),
    )
    return seen, cached, ran


def _difference(clean: Observed, dirty: Observed) -> str | None:
    """The first cycle in which the two are not the same."""
    differs = (clean.accepted != dirty.accepted) | (clean.committed != dirty.committed)
    differs |= (clean.proposed != dirty.proposed).any(-1)
    rows = np.flatnonzero(differs.any(1) | (clean.texts != dirty.texts).any(1))
    if not len(rows):
        return None
    b = int(rows[0])
    start = int(differs[b].argmax()) if differs[b].any() else int(clean.batch.prompt_lengths[b])
    row = clean.batch.rows[b]
    return (
        f"Prompt {list(row.prompt)}, {_asked(row)}, seed {row.seed}: the cycle that starts at "
        f"position {start} guesses {clean.proposed[b, start].tolist()} and accepts "
        f"{clean.accepted[b, start]}, but {dirty.proposed[b, start].tolist()} and "
        f"{dirty.accepted[b, start]} once stale slots are poisoned; the text is "
        f"{_text(clean.texts[b])}, and then {_text(dirty.texts[b])}. A slot at or behind the "
        f"length is read ({len(rows)} of {len(clean.texts)} rows differ)."
    )


def _asked(row: Row) -> str:
    o = row.options
    parts = [f"temperature {o.temperature:g}"]
    parts += [f"{f}={getattr(o, f)}" for f in ("top_p", "top_k") if getattr(o, f) not in (0, 1.0)]
    if (o.repetition_penalty, o.presence_penalty, o.frequency_penalty) != (1.0, 0.0, 0.0):
        parts.append("penalties")
    if row.stop_token_ids:
        parts.append(f"until token {row.stop_token_ids[0]}")
    return " with ".join(parts)


def _text(text: np.ndarray) -> str:
    return str(text[text < VOCAB].tolist())


def _token(token: int) -> str:
    return "the end" if token == VOCAB else str(int(token))
