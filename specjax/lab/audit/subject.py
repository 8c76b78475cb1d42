"""Whose losslessness is audited: what was handed over, checked, and bound to a small target."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from specjax import drafters, verify
from specjax.checkpoint.drafters.named import parse
from specjax.checkpoint.load import Model
from specjax.core import own
from specjax.core.by_shape import Misfit, calling
from specjax.drafters import checking
from specjax.drafters.base import Drafter
from specjax.drafters.checking import name_of
from specjax.drafters.registry import entry_of, kind_of
from specjax.drafters.spec import Spec, ask
from specjax.lab.audit.laws import VOCAB
from specjax.lab.audit.targets import random_drafter, random_model
from specjax.sampling import Options
from specjax.session import Row
from specjax.session.requests import choose
from specjax.verify import Rule

NUM_DRAFT = 2  # of drafters that the audit makes itself: several cycles in a short text


@dataclasses.dataclass(frozen=True)
class Side:
    """A bound drafter and its rule at one temperature."""

    drafter: Drafter
    rule: Rule


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is audited."""

    name: str
    target: Model
    hot: Side | None  # at temperatures above 0
    cold: Side | None  # at temperature 0
    refusals: tuple[str, str] = ("", "")  # why a side is None
    notes: tuple[str, ...] = ()

    @property
    def lossless(self) -> bool:
        """What the rules say of themselves."""
        return all(side.rule.lossless for side in (self.hot, self.cold) if side is not None)

    @property
    def rule_words(self) -> str:
        sides = [side.rule.name for side in (self.hot, self.cold) if side is not None]
        return "rule " + " and ".join(dict.fromkeys(sides))


def make_target() -> Model:
    """A random model with a vocabulary whose texts can be enumerated."""
    return random_model("llama", seed=10, vocab=VOCAB, layers=1, sharp=1.5)


def make_subject(
    drafter: Spec | Callable[[Model], Spec] | str, rule: Rule | str | None, num_draft: int | None
) -> Subject:
    """Checks what was handed over and binds it.

    Raises:
      ValueError: in one line, on what is no drafter or no rule, or if the two do not fit.
    """
    chosen = None if rule is None else verify.get(rule)
    target = make_target()
    spec, notes = make_spec(drafter, target, num_draft)
    named = isinstance(drafter, str) and not own.is_own(drafter)
    given = hasattr(drafter, "bind")  # else it was made by a function, or a file
    name = str(drafter) if named else name_of(drafter if given else spec)

    def side(temperature: float) -> tuple[Side | None, str]:
        row = Row((0,), Options(temperature=temperature), 0, 1, ())
        try:
            bound, found = choose(target, spec, [row], chosen)
        except Misfit:
            raise
        except ValueError as error:
            return None, str(error)
        greedy = temperature == 0
        asked: dict[str, bool] = {"greedy": greedy, "counts": True, "all_of_it": True}
        proposal = checking.check_drafter(bound, name, target, **asked)
        verify.check_verdict(found, proposal, target.config.vocab_size, law=True)
        return Side(bound, found), ""

    (hot, hot_refusal), (cold, cold_refusal) = side(1.0), side(0.0)
    # A rule for temperature 0 alone is audited there. Else the refusal is an error of the caller.
    if hot is None and (cold is None or chosen is None or not chosen.greedy_only):
        raise ValueError(hot_refusal)
    return Subject(name, target, hot, cold, (hot_refusal, cold_refusal), tuple(notes))


def make_spec(
    drafter: Spec | Callable[[Model], Spec] | str, target: Model, num_draft: int | None
) -> tuple[Spec, list[str]]:
    """The spec that is bound, and what the reader should know about it.

    Drafters of this library are made anew for the small target: whether a method is lossless does
    not depend on its weights.
    """
    if num_draft is not None:
        drafters.base.check_num_draft(num_draft)
    draft = random_model("qwen3", seed=9, vocab=VOCAB, layers=1, sharp=3.0)
    k = NUM_DRAFT if num_draft is None else num_draft
    if isinstance(drafter, str):
        return _make_named(drafter, num_draft, target, draft)
    spec: Any = drafter
    if callable(spec) and not inspect.isclass(spec) and not hasattr(spec, "bind"):
        made = name_of(drafter)
        spec = calling(f"{made}(target)", lambda: drafter(target), ValueError)  # type: ignore[operator]
        if not hasattr(spec, "bind"):
            raise ValueError(
                f"{made}(target) returned a {type(spec).__name__}, which has no method "
                "bind(target, kind) (specjax.drafters.Spec)."
            )
    checking.check_spec(spec)
    kind = kind_of(spec)
    own = ask(spec, "own_model")()
    if own is not None and own.config.vocab_size != VOCAB:
        small: Any = dataclasses.replace(spec, model=draft, num_draft=num_draft or spec.num_draft)
        return small, ["audited as a method, with a small random draft in place of its model"]
    if kind is not None and drafters.DRAFTERS[kind].fresh is not None:
        small = random_drafter(kind, k, target)
        if hasattr(spec, "kind"):
            small = dataclasses.replace(small, kind=spec.kind)
        return small, [f"audited as a method, with small random weights and {k} guesses a cycle"]
    if num_draft is not None:
        names = [f.name for f in dataclasses.fields(spec)] if dataclasses.is_dataclass(spec) else []
        if "num_draft" not in names:
            raise ValueError(
                f"num_draft={num_draft}: {name_of(spec)} has no field num_draft; set it where the "
                "drafter is made."
            )
        spec = dataclasses.replace(spec, num_draft=num_draft)
    try:
        checking.bind(spec, target, "sampled")
    except Misfit:
        raise
    except ValueError as error:
        raise ValueError(
            f"{name_of(spec)} does not fit the audit's target (vocabulary {VOCAB}, one layer of "
            f"width {target.config.hidden_size}): {error} Hand over a function that makes a "
            "drafter for any target: specjax.audit(lambda target: ...)."
        ) from error
    return spec, []


def _make_named(
    text: str, num_draft: int | None, target: Model, draft: Model
) -> tuple[Spec, list[str]]:
    """A drafter of this library; a checkpoint that is named besides makes no difference."""
    said = parse(text)
    method = said.name
    if method is None:
        demos = {entry.demo: name for name, entry in drafters.DRAFTERS.items()}
        method = demos.get(said.checkpoint)
    if method is None:
        raise ValueError(
            f"{text!r} is a checkpoint, and methods are audited: name that, NAME[:K], one of "
            f"{', '.join(sorted(drafters.DRAFTERS))}; or hand over a spec of your own."
        )
    if said.num_draft is not None and num_draft not in (None, said.num_draft):
        raise ValueError(f"{text!r} and num_draft={num_draft} say two things; leave one out.")
    k = next((k for k in (num_draft, said.num_draft) if k is not None), NUM_DRAFT)
    drafters.base.check_num_draft(k)
    notes = ["audited as a method: checkpoints make no difference"] if said.checkpoint else []
    entry = entry_of(method)
    if entry.fresh is not None:
        return random_drafter(method, k, target), notes
    if not own.is_own(method):
        return drafters.make(method, model=draft if entry.needs_model else None, num_draft=k), notes
    if inspect.isclass(entry.thing):
        return entry.build(target, k), notes
    given = num_draft if said.num_draft is None else said.num_draft
    return make_spec(entry.thing, target, given)
