"""What the checks look at, decoded once and when it is first asked for."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from specjax import verify
from specjax.core.types import Proposal
from specjax.drafters.base import Context, Drafter
from specjax.drafters.checking import check_proposed
from specjax.lab.audit.batch import Batch
from specjax.lab.audit.laws import GROUPS, NEW, VOCAB, Group, TextLaw, text_laws
from specjax.lab.audit.subject import Side, Subject
from specjax.sampling import Options
from specjax.session import Row

COLD_ROWS, COLD_NEW = 8, 24


@dataclasses.dataclass(frozen=True)
class Guesses:
    """What was proposed to the rows of a batch at one cycle."""

    committed: np.ndarray  # [B, NEW] int32 new tokens before it, padded with V
    tokens: np.ndarray  # [B, K] int32
    q: np.ndarray | None  # [B, K, V] float64
    active: np.ndarray  # [B] bool, rows that were not done


@dataclasses.dataclass(frozen=True)
class Parting:
    """Texts beside those that they should be; from a tie on, another text is as right."""

    compared: int  # tokens
    ties: int  # texts that were left at one
    differ: int  # texts
    first: tuple[int, int] | None  # (text, token) that differs

    @classmethod
    def of(cls, got: np.ndarray, want: np.ndarray, close: np.ndarray) -> Parting:
        """All [B, new]: texts, the right ones padded with V, and where those were close."""
        tied = close.cumsum(1) > 0
        wrong = (got != want) & ~tied
        rows = wrong.any(1)
        row = int(rows.argmax())
        return cls(
            compared=int((~tied & (want < VOCAB)).sum()),
            ties=int(tied.any(1).sum()),
            differ=int(rows.sum()),
            first=(row, int(wrong[row].argmax())) if rows.any() else None,
        )


@dataclasses.dataclass(frozen=True)
class Observed:
    """A decoded batch."""

    batch: Batch
    texts: np.ndarray  # [B, new] int32, padded with V
    guesses: tuple[Guesses, ...]  # of the first two cycles; none where they were not looked at
    accepted: np.ndarray  # [B, S] int32, the trace, by starting position; -1: no cycle
    proposed: np.ndarray  # [B, S, K] int32
    committed: np.ndarray  # [B, S] int32


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Decodes the audit's batches."""

    subject: Subject
    texts: int  # rows of a group
    alpha: float
    seed: int

    @functools.cached_property
    def laws(self) -> list[TextLaw]:
        return text_laws(self.subject.target)

    @functools.cached_property
    def groups(self) -> np.ndarray:
        """[B], the number of each row's group. The greedy one is certain: a few rows do."""
        sizes = [min(self.texts, 16) if g.options.temperature == 0 else self.texts for g in GROUPS]
        return np.repeat(np.arange(len(GROUPS)), sizes)

    @functools.cached_property
    def seeds(self) -> np.ndarray:
        """[B] of the rows."""
        number = len(self.groups)
        return (self.seed * number + np.arange(number, dtype=np.uint64)) % 2**32

    @functools.cached_property
    def hot(self) -> Observed:
        """Short texts of every group, by the drafter and rule that are audited."""
        assert self.subject.hot is not None
        return observe(self.hot_batch(self.subject.hot), self.propose)

    @functools.cached_property
    def coupled(self) -> Observed:
        """The same rows under the rule `coupled`."""
        assert self.subject.hot is not None
        if isinstance(self.subject.hot.rule, verify.Coupled):
            return self.hot
        side = Side(self.subject.hot.drafter, verify.get("coupled"))
        return observe(self.hot_batch(side), None)

    @functools.cached_property
    def cold(self) -> Observed:
        """Long texts at temperature 0."""
        assert self.subject.cold is not None
        side = self.subject.cold
        return observe(Batch.of(self.subject.target, side.drafter, side.rule, cold_rows()), None)

    @functools.cached_property
    def propose(self) -> Any:
        """The drafter's guesses that are to be verified; compiled anew for each audit."""

        def run(drafter: Drafter, draft: Any, context: Context) -> Proposal:
            proposal, _ = drafter.propose(draft, context)
            return proposal if proposal.wanted is None else proposal.first(drafter.num_draft)

        return jax.jit(run)

    def hot_batch(self, side: Side) -> Batch:
        rows = [
            Row(g.prompt, g.options, int(seed), NEW, g.stop_token_ids)
            for g, seed in zip((GROUPS[i] for i in self.groups), self.seeds)
        ]
        return Batch.of(self.subject.target, side.drafter, side.rule, rows)

    def group(self, row: int) -> Group:
        return GROUPS[self.groups[row]]


def cold_rows() -> list[Row]:
    """Ragged prompts, some with penalties, some with a stop token."""
    rng = np.random.default_rng(0)
    penalties = Options(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.25)
    kinds = [Options(), penalties, Options(logit_bias={3: -2.0}, frequency_penalty=0.4)]
    return [
        Row(
            tuple(rng.integers(0, VOCAB, size=1 + b).tolist()),
            kinds[b % 3],
            b,
            COLD_NEW,
            (3,) if b % 4 == 3 else (),
        )
        for b in range(COLD_ROWS)
    ]


def observe(batch: Batch, propose: Any | None) -> Observed:
    """Decodes a batch; with ``propose``, looks at the guesses of the first two cycles."""
    state, guesses = batch.start(), []
    if propose is not None:
        for _ in range(2):
            proposal = propose(batch.drafter, state.draft, batch.context(state))
            q = None if proposal.q is None else np.asarray(proposal.q, np.float64)
            guesses.append(
                Guesses(
                    committed=batch.texts(state, VOCAB),
                    tokens=np.asarray(proposal.tokens),
                    q=q,
                    active=~np.asarray(state.done),
                )
            )
            state = batch.advance(state, 1)
    state = batch.advance(state)
    committed, proposed = np.asarray(state.record.committed), np.asarray(state.record.proposed)
    name, vocab = type(batch.drafter).__name__, batch.target.config.vocab_size
    check_proposed(proposed, vocab, name, committed)
    return Observed(
        batch=batch,
        texts=batch.texts(state, VOCAB),
        guesses=tuple(guesses),
        accepted=np.asarray(state.record.accepted),
        proposed=proposed,
        committed=committed,
    )
