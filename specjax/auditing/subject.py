"""Whose losslessness is audited: what was handed over, checked, and bound to a small target."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax import drafters, verify
from specjax.auditing.laws import VOCAB
from specjax.auditing.targets import random_drafter, random_model
from specjax.checkpoint.drafters.named import EMBEDDED, parse
from specjax.checkpoint.load import Model
from specjax.core.keys import row_keys
from specjax.core.types import KINDS
from specjax.drafters.base import Context, Drafter, Spec
from specjax.sampling import Options, make_sampling
from specjax.session import Row, choose
from specjax.verify import Rule

NUM_DRAFT = 2  # of drafters that the audit makes itself: several cycles in a short text
_METHODS = ("init", "prefill", "propose", "update", "grow")
_FIELDS = ("num_draft", "kind", "taps")
_NUMBERS = np.ndarray | np.generic | bool | int | float


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
    def rule_words(self) -> str:
        sides = [side.rule.name for side in (self.hot, self.cold) if side is not None]
        return "rule " + " and ".join(dict.fromkeys(sides))


def make_target() -> Model:
    """A random model with a vocabulary whose texts can be enumerated."""
    return random_model("llama", seed=2, vocab=VOCAB, layers=1, sharp=1.5)


def make_subject(
    drafter: Spec | Callable[[Model], Spec] | str, rule: Rule | str | None, num_draft: int | None
) -> Subject:
    """Checks what was handed over and binds it.

    Raises:
      ValueError: in one line, on what is no drafter or no rule, or if the two do not fit.
    """
    chosen = None if rule is None else make_rule(rule)
    target = make_target()
    spec, notes = make_spec(drafter, target, num_draft)
    made = isinstance(drafter, str) or hasattr(drafter, "bind")  # else by a function
    name = drafter if isinstance(drafter, str) else name_of(drafter if made else spec)
    check_drafter(spec.bind(target, "sampled"), name, target)

    def side(temperature: float) -> tuple[Side | None, str]:
        row = Row((0,), Options(temperature=temperature), 0, 1, ())
        try:
            return Side(*choose(target, spec, [row], chosen)), ""
        except ValueError as error:
            return None, str(error)

    (hot, hot_refusal), (cold, cold_refusal) = side(1.0), side(0.0)
    # A rule for temperature 0 alone is audited there. Else the refusal is an error of the caller.
    if hot is None and (cold is None or chosen is None or not chosen.greedy_only):
        raise ValueError(hot_refusal)
    for s in (hot, cold):
        if s is not None:
            check_drafter(s.drafter, name, target)
    return Subject(name, target, hot, cold, (hot_refusal, cold_refusal), tuple(notes))


def make_rule(rule: Rule | str) -> Rule:
    """The rule that was named or handed over."""
    if not isinstance(rule, str | Rule):
        what = rule.__name__ if inspect.isclass(rule) else f"a {type(rule).__name__}"
        raise ValueError(
            f"{what} is no rule: hand over an instance of a subclass of specjax.verify.Rule, or "
            f"the name of a registered one, {', '.join(sorted(verify.RULES))}."
        )
    chosen = verify.get(rule)
    lacking = [f for f in ("name", "takes") if not hasattr(chosen, f)]
    if type(chosen).law is Rule.law:
        lacking.append("law()")
    if lacking:
        raise ValueError(
            f"rule {type(chosen).__name__} lacks {', '.join(lacking)}; see specjax/verify/base.py."
        )
    odd = set(chosen.takes) - set(KINDS)
    if odd or not chosen.takes:
        raise ValueError(
            f"rule {chosen.name!r} takes {sorted(chosen.takes)}; name the kinds of guesses for "
            f"which it is exact: {', '.join(KINDS)}."
        )
    return chosen


def name_of(drafter: Any) -> str:
    name = getattr(drafter, "name", None) or getattr(drafter, "__name__", None)
    return name if isinstance(name, str) else type(drafter).__name__


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
    if inspect.isclass(drafter):
        raise ValueError(
            f"{drafter.__name__} is a class; hand over an instance, or a function that makes one "
            "for a target."
        )
    spec: Any = drafter
    if not hasattr(spec, "bind"):
        if not callable(spec):
            raise ValueError(
                f"a {type(spec).__name__} is no drafter: it has no method bind(target, kind) "
                "(specjax.drafters.Spec)."
            )
        spec = spec(target)
        if not hasattr(spec, "bind"):
            raise ValueError(
                f"{name_of(drafter)}(target) returned a {type(spec).__name__}, which has no method "
                "bind(target, kind) (specjax.drafters.Spec)."
            )
    kind = next((n for n, e in drafters.DRAFTERS.items() if _made_by(e, spec)), None)
    if isinstance(spec, drafters.LM):
        small: Any = dataclasses.replace(spec, model=draft, num_draft=num_draft or spec.num_draft)
        return small, ["audited as a method, with a small random draft in place of its model"]
    if kind is not None:
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
        spec.bind(target, "sampled")
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
        method = next((m for m, demo in EMBEDDED.items() if demo == said.checkpoint), None)
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
    entry = drafters.DRAFTERS[method]
    if entry.fresh is not None:
        return random_drafter(method, k, target), notes
    return drafters.make(method, model=draft if entry.needs_model else None, num_draft=k), notes


def _made_by(entry: drafters.Entry, spec: Any) -> bool:
    return entry.fresh is not None and isinstance(spec, getattr(entry.fresh, "__self__", ()))


def check_drafter(drafter: Any, name: str, target: Model) -> None:
    """Raises ValueError, in one line, on what is not a `specjax.drafters.Drafter`."""
    lacking = [f"{m}()" for m in _METHODS if not callable(getattr(drafter, m, None))]
    lacking += [f for f in _FIELDS if not hasattr(drafter, f)]
    if lacking:
        raise ValueError(
            f"{name} binds to a {type(drafter).__name__}, which lacks {', '.join(lacking)}; see "
            "specjax/drafters/base.py."
        )
    if drafter.kind not in KINDS:
        raise ValueError(f"{name}: kind is {drafter.kind!r}; must be one of {', '.join(KINDS)}.")
    odd = [x for x in jax.tree.leaves(drafter) if not isinstance(x, jax.Array | _NUMBERS)]
    if odd:
        raise ValueError(
            f"{name} binds to a {type(drafter).__name__} that is no pytree of arrays (it holds a "
            f"{type(odd[0]).__name__}): decorate its class with specjax.core.types.pytree, and "
            "declare what is no array with static()."
        )
    K, V, rows, slots = drafter.num_draft, target.config.vocab_size, 2, 16
    context = Context(
        tokens=jnp.zeros((rows, slots), jnp.int32),
        length=jnp.ones((rows,), jnp.int32),
        keys=row_keys(jnp.arange(rows, dtype=jnp.uint32)),
        sampling=make_sampling([Options(temperature=1.0)] * rows, V),
        counts=None,
    )
    proposal, _ = jax.eval_shape(
        lambda drafter, context: drafter.propose(drafter.init(rows, slots), context),
        drafter,
        context,
    )
    if proposal.tokens.shape != (rows, K) or proposal.tokens.dtype != jnp.int32:
        raise ValueError(
            f"{name} guesses {proposal.tokens.dtype}{list(proposal.tokens.shape)} for {rows} rows; "
            f"with num_draft={K} it must be int32[{rows}, {K}]."
        )
    if proposal.q is not None and proposal.q.shape != (rows, K, V):
        raise ValueError(
            f"{name} reports a law q of shape {list(proposal.q.shape)} for {rows} rows; it must be "
            f"[{rows}, {K}, {V}], rows, guesses, vocabulary."
        )
