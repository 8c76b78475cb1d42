"""`check_drafter`: does a loaded drafter draft? A few dozen greedy cycles, and a diagnosis.

A drafter that is read wrongly raises no error: verification repairs every guess, and only speed is
lost. So its tau is measured, and where it is near 1 the usual mistakes are tried one by one, which
its kind knows (`Spec.misreadings`): the same weights with the taps one layer lower and higher, the
target's rotary base, other masks. A trial that makes tau rise names the mistake.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from specjax.checkpoint.drafters.named import as_spec
from specjax.checkpoint.load import Model
from specjax.core.family import Family
from specjax.drafters.checking import bind
from specjax.drafters.family import family_of
from specjax.drafters.spec import Spec, ask
from specjax.prompts.ids import Prompts
from specjax.request import prepare
from specjax.session import Session
from specjax.trace.trace import Trace

WARN_BELOW = 1.5  # tau; a sound drafter reaches it on nearly any text
_RISES = 1.3  # a trial must raise tau by this factor to be named ..
_SETTLES = 1.5  # .. and by this one to end the search
_RANDOM_PROMPTS, _RANDOM_LENGTH = 3, 24

CANNED = (
    "The first thing to know about the moon is that it",
    "def fibonacci(n):\n    if n < 2:\n        return n",
    "Question: A train covers 60 miles in one hour. How far does it go in three?\nAnswer:",
    "Ingredients: two eggs, 200 g of flour, a pinch of salt. First,",
)


@dataclasses.dataclass(frozen=True)
class Trial:
    """The same weights read in another way."""

    what: str
    tau: float
    means: str  # what it says about the checkpoint if tau rises


@dataclasses.dataclass(frozen=True)
class DrafterReport:
    """What `check_drafter` found."""

    drafter: str
    target: str
    texts: str  # what it was tried on
    num_draft: int
    cycles: int
    tau: float
    survival: tuple[float, ...]  # P(accepted >= i), i = 1..K
    guessed: float = 1.0  # share of the cycles in which there was a guess
    family: Family = Family.OWN
    trials: tuple[Trial, ...] = ()  # run where tau is near 1
    causes: tuple[str, ...] = ()  # in order of likelihood; empty where all is well

    @property
    def first_guess(self) -> float:
        """How often the first guess of a cycle was accepted."""
        return self.survival[0] if self.survival else 0.0

    @property
    def passed(self) -> bool:
        return self.tau >= WARN_BELOW

    @property
    def found(self) -> Trial | None:
        """The trial that raised tau clearly and most."""
        best = max(self.trials, key=lambda t: t.tau, default=None)
        floor = max(WARN_BELOW, _RISES * self.tau)
        return best if best is not None and best.tau >= floor else None

    def __str__(self) -> str:
        line = (
            f"{self.drafter} for {self.target}: tau {self.tau:.2f} of at most "
            f"{self.num_draft + 1} over {self.cycles} greedy cycles on {self.texts}; the first "
            f"guess is accepted {self.first_guess:.0%} of the time."
        )
        if not self.causes:
            return line
        listed = [f"  {i}. {cause}" for i, cause in enumerate(self.causes, 1)]
        return "\n".join([line, "tau near 1 has a cause. In order of likelihood:", *listed])


def check_drafter(
    target: Model,
    drafter: Spec | str,
    *,
    prompts: Prompts | None = None,
    cycles: int = 48,
) -> DrafterReport:
    """Measures tau over greedy cycles and, where it is near 1, looks for the reason.

    Args:
      target: from `specjax.load`.
      drafter: from `specjax.load_drafter` or `specjax.drafters`, or its name.
      prompts: of the kind that it will be used on, in any form that `generate` takes; None: a few
        canned texts, or random tokens where the target has no tokenizer.
      cycles: how many to run, over all prompts together.

    Raises:
      ValueError: if drafter and target do not fit, or on prompts that cannot be served.
    """
    if not isinstance(cycles, int) or isinstance(cycles, bool) or cycles < 1:
        raise ValueError(f"cycles={cycles!r}: must be a whole number, at least 1.")
    drafter = as_spec(drafter, target)
    texts, prompts = _prompts(target, prompts)
    trace, num_draft, tokens = _run(target, drafter, prompts, cycles)
    report = DrafterReport(
        drafter=str(getattr(drafter, "name", type(drafter).__name__)),
        target=target.name,
        texts=texts,
        num_draft=num_draft,
        cycles=trace.num_cycles,
        tau=trace.tau,
        survival=tuple(trace.survival()),
        guessed=sum(bool(c.proposed) for c in trace) / max(trace.num_cycles, 1),
        family=family_of(drafter),
    )
    if report.passed or num_draft == 0:
        return report
    trials = []
    for what, means, other in _variants(target, drafter):
        tried, _, _ = _run(target, other, prompts, cycles)
        trials.append(Trial(what, tried.tau, means))
        if tried.tau >= max(WARN_BELOW, _SETTLES * report.tau):
            break  # each trial is compiled anew
    report = dataclasses.replace(report, trials=tuple(trials))
    return dataclasses.replace(report, causes=tuple(_causes(report, target, drafter, tokens)))


def _prompts(target: Model, prompts: Any) -> tuple[str, Any]:
    """What they are, in words, and the prompts."""
    if prompts is not None:
        return "the given prompts", prompts
    if target.tokenizer is not None:
        return f"{len(CANNED)} canned texts", list(CANNED)
    rng = np.random.default_rng(0)
    shape = (_RANDOM_PROMPTS, _RANDOM_LENGTH)
    return "random tokens", rng.integers(0, target.config.vocab_size, shape).tolist()


def _run(
    target: Model, drafter: Spec, prompts: Any, cycles: int
) -> tuple[Trace, int, list[list[int]]]:
    """Greedy cycles, at least ``cycles`` over all rows; the trace, K, and the new tokens."""
    rows, _ = prepare(target, prompts, 1, 0, (), [], {})
    if not rows:
        raise ValueError("No prompts: give at least one.")
    wide = bind(drafter, target, "one_hot")[0].num_draft + 1
    each = -(-cycles // len(rows))
    longest = target.config.max_position_embeddings
    rows = [
        dataclasses.replace(r, max_new_tokens=max(min(each * wide, longest - len(r.prompt)), 1))
        for r in rows
    ]
    session = Session(target, drafter, rows)
    ran = 0
    while ran < each and not session.done.all():
        session.advance(each - ran)
        ran = max(len(row) for row in session.trace().rows)
    return session.trace(), wide - 1, session.new_tokens()


def _variants(target: Model, drafter: Any) -> Iterator[tuple[str, str, Spec]]:
    """The usual mistakes undone: (what, what it means if tau rises, the drafter)."""
    for misreading in ask(drafter, "misreadings")(target):
        for trial in misreading.trials:
            yield trial.what, trial.means, trial.spec


def _causes(
    report: DrafterReport, target: Model, drafter: Any, tokens: list[list[int]]
) -> Iterator[str]:
    """The likely reasons in order, with what is known of each."""
    if report.found is not None:
        yield (f"With {report.found.what} tau is {report.found.tau:.2f}: {report.found.means}.")
    least = getattr(drafter, "min_confidence", None)
    if least is not None:
        yield (
            f"min_confidence={least:g}: a guess was worth verifying in {report.guessed:.0%} of the "
            "cycles; lower it, or leave it out."
        )
    if report.family is not Family.TRAINED:
        yield from _causes_of_others(report)
        return
    yield (
        f"Another target: it must be the very checkpoint, and the same fine-tune, that "
        f"{target.name} is; sizes that agree do not show that."
    )
    tried = {t.what: f"{t.tau:.2f}" for t in report.trials}
    for misreading in ask(drafter, "misreadings")(target):
        names = [t.what for t in misreading.trials if t.what in tried]
        seen = ", ".join(f"tau {tried[name]} with {name}" for name in names)
        yield f"{misreading.cause}{f' (tried: {seen})' if seen else ''}."
    ids = getattr(drafter, "target_ids", None)
    if ids is not None:
        known = set(np.asarray(ids).tolist())
        written = [t for row in tokens for t in row]
        share = sum(t in known for t in written) / max(len(written), 1)
        yield f"Reduced head: its {len(known)} tokens are {share:.0%} of what the target wrote."
    yield (
        f"The prompts: {report.texts}, without a chat template. A drafter trained on chats, on "
        "thinking or on none, accepts little elsewhere: give prompts=[...] of the kind it will see."
    )
    yield "Another domain or language than it was trained on."


def _causes_of_others(report: DrafterReport) -> Iterator[str]:
    """Likely causes for drafters that read nothing of a target, and so misread nothing."""
    if report.family is Family.LOOKUP:
        yield (
            f"The texts: {report.texts}. Prompt lookup guesses what stands in the text already, "
            f"and had something to guess in {report.guessed:.0%} of the cycles: give prompts=[...] "
            "of the kind it will see, such as edits, summaries or long code."
        )
        return
    if report.family is Family.MODEL:
        yield "A draft that was never trained like the target, or is far too small for it."
    else:
        yield (
            "A state that went wrong, which verification hides: specjax.audit compares its guesses "
            "with those of a fresh one."
        )
        yield "Guesses for other positions: the first is for the token behind the pending one."
    yield (
        f"The prompts: {report.texts}, without a chat template: give prompts=[...] of the kind it "
        "will see."
    )
