"""`check_drafter`: does a loaded drafter draft? A few dozen greedy cycles, and a diagnosis.

A drafter that is read wrongly raises no error: verification repairs every guess, and only speed is
lost. So its tau is measured, and where it is near 1 the usual mistakes are tried one by one, which
its kind knows (`Spec.misreadings`): the same weights with the taps one layer lower and higher, the
other kind of norms, the target's rotary base, other masks and windows; and the same prompts with
the target's chat template or without. A trial that makes tau rise names the mistake.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from specjax.checkpoint.drafters.named import as_spec
from specjax.checkpoint.load import Model
from specjax.core.family import Family
from specjax.drafters.checking import bind
from specjax.drafters.family import family_of
from specjax.drafters.spec import Misreading, Spec, ask
from specjax.prompts.forms import is_conversation, split
from specjax.prompts.ids import PlainTextWarning, Prompts
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
        word = "It can be higher" if self.passed else "tau near 1 has a cause"
        return "\n".join([line, f"{word}. In order of likelihood:", *listed])


def check_drafter(
    target: Model,
    drafter: Spec | str,
    *,
    prompts: Prompts | None = None,
    cycles: int = 48,
    thorough: bool = False,
) -> DrafterReport:
    """Measures tau over greedy cycles and, where it is near 1, looks for the reason.

    Args:
      target: from `specjax.load`.
      drafter: from `specjax.load_drafter` or `specjax.drafters`, or its name.
      prompts: of the kind that it will be used on, in any form that `generate` takes; None: a few
        canned texts, or random tokens where the target has no tokenizer.
      cycles: how many to run, over all prompts together. What a window hides shows only in texts
        that are longer than it.
      thorough: looks for a better reading where tau is not near 1, too: some mistakes cost half.

    Raises:
      ValueError: if drafter and target do not fit, or on prompts that cannot be served.
    """
    if not isinstance(cycles, int) or isinstance(cycles, bool) or cycles < 1:
        raise ValueError(f"cycles={cycles!r}: must be a whole number, at least 1.")
    drafter = as_spec(drafter, target)
    texts, prompts = _prompts(target, prompts)
    ran = _run(target, drafter, prompts, cycles)
    trace = ran.trace
    report = DrafterReport(
        drafter=str(getattr(drafter, "name", type(drafter).__name__)),
        target=target.name,
        texts=texts,
        num_draft=ran.num_draft,
        cycles=trace.num_cycles,
        tau=trace.tau,
        survival=tuple(trace.survival()),
        guessed=sum(bool(c.proposed) for c in trace) / max(trace.num_cycles, 1),
        family=family_of(drafter),
    )
    if (report.passed and not thorough) or ran.num_draft == 0:
        return report
    trials = []
    for what, means, other, asked in _trials(target, drafter, prompts, ran.longest):
        tried = _run(target, other, asked.prompts, cycles, asked.template_args).trace
        trials.append(Trial(what, tried.tau, means))
        if tried.tau >= max(WARN_BELOW, _SETTLES * report.tau):
            break  # each trial is compiled anew
    report = dataclasses.replace(report, trials=tuple(trials))
    causes = _causes(report, target, drafter, ran.tokens)
    if report.passed:
        causes = itertools.islice(causes, int(report.found is not None))
    return dataclasses.replace(report, causes=tuple(causes))


@dataclasses.dataclass(frozen=True)
class _Asked:
    """Prompts, and what their template is given besides."""

    prompts: Any
    template_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Ran:
    """Greedy cycles over all prompts."""

    trace: Trace
    num_draft: int
    tokens: list[list[int]]  # new ones
    longest: int  # tokens of a text


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
    target: Model,
    drafter: Spec,
    prompts: Any,
    cycles: int,
    template_args: Mapping[str, Any] | None = None,
) -> _Ran:
    """At least ``cycles`` greedy cycles over all rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlainTextWarning)  # which of the two it wants is asked here
        rows, _ = prepare(target, prompts, 1, 0, (), [], {}, template_args)
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
    new = session.new_tokens()
    most = max(len(row.prompt) + len(tokens) for row, tokens in zip(rows, new, strict=True))
    return _Ran(session.trace(), wide - 1, new, most)


def _trials(
    target: Model, drafter: Any, prompts: Any, longest: int
) -> Iterator[tuple[str, str, Spec, _Asked]]:
    """The usual mistakes undone: (what, what it means if tau rises, the drafter, what is asked)."""
    if family_of(drafter) is Family.TRAINED:
        for what, means, asked in _other_prompts(target, prompts):
            yield what, means, drafter, asked
    for misreading in _misreadings(target, drafter):
        for trial in misreading.trials:
            if longest > trial.beyond:
                yield trial.what, trial.means, trial.spec, _Asked(prompts)


def _misreadings(target: Model, drafter: Any) -> list[Misreading]:
    """The likeliest first."""
    return sorted(ask(drafter, "misreadings")(target), key=lambda m: not m.likely)


def _other_prompts(target: Model, prompts: Any) -> Iterator[tuple[str, str, _Asked]]:
    """The same prompts with the target's chat template where they had none, or without it."""
    try:
        variables, said = target.chat_template.variables, split(prompts)
    except ValueError:  # no template, or a broken one
        return
    if all(isinstance(prompt, str) for prompt in said):
        talks: list[Any] = [[{"role": "user", "content": prompt}] for prompt in said]
        means = (
            "it was trained on conversations: give prompts=[[{'role': 'user', 'content': ..}]], "
            "and on a command line --chat"
        )
        yield "the target's chat template", means, _Asked(talks)
    elif all(is_conversation(prompt) for prompt in said):
        talks = said
        if texts := [_plain(talk) for talk in talks]:
            means = "it was trained on plain text: give prompts as such, without --chat"
            yield "plain text, without the chat template", means, _Asked(texts)
    else:
        return
    for value in (False, True) if "enable_thinking" in variables else ():
        means = f"it was trained so: give template_args enable_thinking={str(value).lower()}"
        what = f"the chat template and enable_thinking={str(value).lower()}"
        yield what, means, _Asked(talks, {"enable_thinking": value})


def _plain(conversation: Any) -> str:
    """What a conversation's messages say, one a paragraph."""
    said = (message.get("content") for message in conversation)
    return "\n\n".join(text for text in said if isinstance(text, str))


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
    for misreading in _misreadings(target, drafter):
        yield f"{misreading.cause}{_seen(tried, [t.what for t in misreading.trials])}."
    ids = getattr(drafter, "target_ids", None)
    if ids is not None:
        known = set(np.asarray(ids).tolist())
        written = [t for row in tokens for t in row]
        share = sum(t in known for t in written) / max(len(written), 1)
        yield f"Reduced head: its {len(known)} tokens are {share:.0%} of what the target wrote."
    yield (
        f"The prompts: {report.texts}{_seen(tried, list(tried))}. A drafter trained on chats, on "
        "thinking or on none, accepts little elsewhere: give prompts=[...] of the kind it will see."
    )
    yield "Another domain or language than it was trained on."


def _seen(tried: dict[str, str], names: list[str]) -> str:
    """What was tried of these, in parentheses; what was said is said once."""
    said = [f"tau {tried.pop(name)} with {name}" for name in names if name in tried]
    return f" (tried: {', '.join(said)})" if said else ""


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
