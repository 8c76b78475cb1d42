"""`specjax.audit`: is a drafter with a rule lossless?"""

from __future__ import annotations

import dataclasses
import inspect
import numbers
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from specjax.checkpoint.drafters.named import as_spec
from specjax.checkpoint.load import Model
from specjax.core.seeds import check_seed
from specjax.drafters.base import check_num_draft
from specjax.drafters.checking import name_of
from specjax.drafters.spec import Spec
from specjax.lab.audit.drafting import check_guesses, check_verdicts
from specjax.lab.audit.evidence import Evidence
from specjax.lab.audit.exact import check_rule
from specjax.lab.audit.laws import GROUPS, VOCAB
from specjax.lab.audit.report import AuditReport, Check
from specjax.lab.audit.state import check_greedy, check_stale
from specjax.lab.audit.states import check_state
from specjax.lab.audit.subject import Subject, make_subject
from specjax.lab.audit.target import TARGET_CHECKS, TargetEvidence, check_target, make_target
from specjax.lab.audit.texts import check_coupling, check_stops, check_texts
from specjax.sampling import Options
from specjax.session import Row
from specjax.session.requests import choose
from specjax.verify import Rule

# Of a report, in its order.
CHECKS: dict[str, Callable[[Evidence], Check]] = {
    "rule": check_rule,
    "guesses": check_guesses,
    "verdicts": check_verdicts,
    "texts": check_texts,
    "stops": check_stops,
    "coupling": check_coupling,
    "greedy": check_greedy,
    "stale": check_stale,
    "state": check_state,
}
_HOT = ("guesses", "verdicts", "texts", "stops", "coupling")
# Those that compare the text, or the rule's law of it, with the target's: a rule that says that it
# is not lossless differs there, and by how much is what its audit tells.
_OF_TEXT = ("rule", "texts", "stops", "coupling", "greedy")
MIN_TEXTS = 500
MOST_GUESSES = 16


def audit(
    drafter: Spec | Callable[[Model], Spec] | str | None = None,
    rule: Rule | str | None = None,
    *,
    target: Model | type | str | None = None,
    num_draft: int | None = None,
    texts: int = 8000,
    alpha: float = 1e-5,
    seed: int = 0,
    checks: Sequence[str] | None = None,
    watch: Callable[[Check], None] | None = None,
) -> AuditReport:
    """Looks for a reason why the text would not be distributed as the target's own.

    With ``target``, at that target itself: whether each layer's memory is right under any counts
    and paths, whether what it holds no longer is never seen, whether a block's width matters, and
    whether text that was guessed is the plain one. Else at a drafter and a rule:

    On a small random target whose law of texts is enumerated. Seeds are fixed: the verdict is the
    same in every run. About a minute on two CPU cores, most of it compilation.

    Args:
      drafter: a spec; a function that makes one for a target (`specjax.Model`), where a drafter
        depends on the vocabulary or the width; or the name of a registered drafter, NAME[:K].
      rule: a `specjax.verify.Rule` or the name of one; None: the best for the drafter and the
        temperature, as `specjax.generate` takes it.
      target: a model from `specjax.load`, the name of a checkpoint or of a registered family, or
        the class of a family, which gets small random weights. A drafter given beside it guesses
        its text, too.
      num_draft: K; None: the drafter's own, 2 where it is made here; with ``target`` 4.
      texts: how many are decoded with each set of options.
      alpha: how often each statistical check may fail without a fault.
      seed: of the texts.
      checks: names from `CHECKS`, or with ``target`` from `TARGET_CHECKS`, to run some only.
      watch: called with each check when it is done.

    Raises:
      ValueError: in one line, on what is no drafter or no rule, or if the two do not fit.
    """
    plan = prepare(
        drafter,
        rule,
        num_draft=num_draft,
        texts=texts,
        alpha=alpha,
        seed=seed,
        checks=checks,
        target=target,
    )
    return plan.run(watch)


@dataclasses.dataclass(frozen=True)
class Plan:
    """An audit whose input was checked."""

    evidence: Evidence
    names: tuple[str, ...]

    def run(self, watch: Callable[[Check], None] | None = None) -> AuditReport:
        """Runs the checks; calls ``watch`` with each when it is done."""
        begin, subject = time.perf_counter(), self.evidence.subject
        done, skipped = [], []
        for name in self.names:
            why = _not_applicable(name, self.evidence)
            if why is not None:
                skipped.append((name, why))
                continue
            start = time.perf_counter()
            check = CHECKS[name](self.evidence)
            meant = name in _OF_TEXT and not check.passed and not subject.lossless
            check = dataclasses.replace(check, by_design=meant, seconds=time.perf_counter() - start)
            done.append(check)
            if watch is not None:
                watch(check)
        return AuditReport(
            drafter=subject.name,
            rule=subject.rule_words,
            lossless=subject.lossless,
            target=f"a random target with a vocabulary of {VOCAB}",
            checks=tuple(done),
            not_applicable=tuple(skipped),
            notes=(*subject.notes, *_acceptance(self.evidence)),
            seconds=time.perf_counter() - begin,
        )


@dataclasses.dataclass(frozen=True)
class TargetPlan:
    """An audit of a target whose input was checked."""

    evidence: TargetEvidence
    names: tuple[str, ...]

    def run(self, watch: Callable[[Check], None] | None = None) -> AuditReport:
        """Runs the checks, see `Plan.run`."""
        begin, done = time.perf_counter(), []
        for name in self.names:
            start = time.perf_counter()
            check = TARGET_CHECKS[name](self.evidence)
            check = dataclasses.replace(check, seconds=time.perf_counter() - start)
            done.append(check)
            if watch is not None:
                watch(check)
        given = self.evidence.drafter
        return AuditReport(
            drafter="" if given is None else name_of(given),
            rule="rule coupled",
            target=self.evidence.target.name,
            checks=tuple(done),
            seconds=time.perf_counter() - begin,
            of_target=True,
        )


def _prepare_target(
    target: Model | type | str,
    drafter: Any,
    rule: Rule | str | None,
    num_draft: int | None,
    seed: int,
    checks: Sequence[str] | None,
) -> TargetPlan:
    """Checks the arguments of `audit` with a target."""
    if rule is not None:
        raise ValueError("rule: a target is audited under the rule coupled; leave it out.")
    names = _names(checks, TARGET_CHECKS)
    k = 4 if num_draft is None else num_draft
    check_num_draft(k)
    if k > MOST_GUESSES:
        raise ValueError(f"num_draft={k}: a target is audited with at most {MOST_GUESSES} guesses.")
    model = make_target(target)
    check_target(model)
    spec = None
    if drafter is not None:
        made = callable(drafter) and not inspect.isclass(drafter) and not hasattr(drafter, "bind")
        spec = as_spec(drafter(model) if made else drafter, model)
        choose(model, spec, [Row((0,), Options(temperature=1.0), 0, 1, ())], "coupled")
    return TargetPlan(TargetEvidence(model, spec, k, int(seed)), names)


def prepare(
    drafter: Spec | Callable[[Model], Spec] | str | None = None,
    rule: Rule | str | None = None,
    *,
    target: Model | type | str | None = None,
    num_draft: int | None = None,
    texts: int = 8000,
    alpha: float = 1e-5,
    seed: int = 0,
    checks: Sequence[str] | None = None,
) -> Plan | TargetPlan:
    """Checks the arguments of `audit`. Raises its ValueError before any long work."""
    _check_numbers(texts, alpha, seed)
    if target is not None:
        return _prepare_target(target, drafter, rule, num_draft, seed, checks)
    names = _names(checks, CHECKS)
    if drafter is None:
        raise ValueError("Nothing to audit: give a drafter, a target, or both.")
    subject = make_subject(drafter, rule, num_draft)
    evidence = Evidence(subject, int(texts), float(alpha), int(seed))
    for name in names:
        if checks is not None and _refusal(name, subject):
            raise ValueError(f"checks: {name} does not apply: {_refusal(name, subject)}")
    return Plan(evidence, names)


def _check_numbers(texts: int, alpha: float, seed: int) -> None:
    """Raises ValueError on those that say nothing."""
    if not _whole(texts) or texts < MIN_TEXTS:
        raise ValueError(f"texts={texts!r}: must be a whole number, at least {MIN_TEXTS}.")
    if not isinstance(alpha, numbers.Real) or not 0 < alpha <= 0.05:
        raise ValueError(f"alpha={alpha!r}: must be above 0 and at most 0.05.")
    check_seed(seed)


def _names(checks: Sequence[str] | None, known: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the checks to run. Raises ValueError if one is unknown."""
    names = tuple(known) if checks is None else tuple(checks)
    if isinstance(checks, str) or not names:
        raise ValueError(f"checks={checks!r}: must be a list of names, at least one.")
    for name in names:
        if name not in known:
            raise ValueError(f"No check {name!r}; there are {', '.join(known)}.")
    return tuple(name for name in known if name in names)


def _whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _not_applicable(name: str, evidence: Evidence) -> str | None:
    """Why a check says nothing about this drafter and rule."""
    subject = evidence.subject
    refusal = _refusal(name, subject)
    if refusal is not None:
        return refusal
    side = subject.hot or subject.cold
    assert side is not None
    if name in ("guesses", "state") and side.drafter.num_draft == 0:
        return "nothing is guessed"
    coupled = name in ("guesses", "verdicts") and side.drafter.kind == "coupled"
    if coupled and evidence.hot.guesses[0].q is None:
        return "guesses share the target's noise and report no q; the check coupling decides"
    return None


def _refusal(name: str, subject: Subject) -> str | None:
    """Why the drafter and the rule are not used together at the temperature of a check."""
    if name in _HOT and subject.hot is None:
        return subject.refusals[0]
    return subject.refusals[1] if name == "greedy" and subject.cold is None else None


def _acceptance(evidence: Evidence) -> list[str]:
    """How much of what is decided about guesses was seen at all."""
    if "hot" not in vars(evidence):
        return []
    hot = evidence.hot
    warm = np.array([GROUPS[g].options.temperature > 0 for g in evidence.groups], np.bool_)
    cycles = (hot.accepted >= 0) & warm[:, None]
    guessed = (hot.proposed >= 0).any(-1) & cycles
    if not guessed.any():
        return [] if hot.batch.drafter.num_draft == 0 else ["no cycle had a guess to verify"]
    rate = float((hot.accepted[guessed] > 0).mean())
    share = float(guessed.sum() / cycles.sum())
    words = (
        f"{share:.0%} of {cycles.sum()} cycles had a guess, and the first guess was accepted in "
        f"{rate:.0%} of them"
    )
    if not 0.01 < rate < 0.99:
        words += ", so that little was seen of " + ("rejection" if rate > 0.5 else "acceptance")
    return [words]
