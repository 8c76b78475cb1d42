"""Verification rules: what is kept of a proposal so that the text follows the target's law."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

from specjax.core import own
from specjax.core.types import KINDS, Parents
from specjax.verify.base import Law, Rule, VerifyKeys
from specjax.verify.block import Block
from specjax.verify.checking import check_rule, check_verdict
from specjax.verify.coupled import Coupled, gumbel_acceptance, gumbel_coupling
from specjax.verify.greedy import Greedy
from specjax.verify.token import Token
from specjax.verify.walk import WalkLaw

__all__ = [
    "RULES",
    "Block",
    "Coupled",
    "Greedy",
    "Law",
    "Rule",
    "Token",
    "VerifyKeys",
    "WalkLaw",
    "check",
    "check_rule",
    "check_verdict",
    "default_rule",
    "get",
    "gumbel_acceptance",
    "gumbel_coupling",
    "register_rule",
]

RULES: dict[str, Rule] = {rule.name: rule for rule in (Greedy(), Token(), Block(), Coupled())}


def get(name: str | Rule) -> Rule:
    """The rule of that name, registered or ``FILE.py:NAME``; a rule itself is handed back, checked.

    Raises:
      ValueError: in one line, if there is none, or it is no rule.
    """
    known = ", ".join(sorted(RULES))
    if not isinstance(name, str):
        check_rule(name, known)
        return name
    if own.is_own(name):
        return _own_rule(own.find(name))
    if name not in RULES:
        raise ValueError(f"no verification rule {name!r}; there are {known}.")
    return RULES[name]


def register_rule(rule: Rule) -> None:
    """Lists a rule under its name, which every script and `specjax.generate` then takes.

    Raises:
      ValueError: if it is no rule, or its name is taken.
    """
    rule = _own_rule(rule)
    known = RULES.get(rule.name)
    if known is not None and not own.same_thing(known, rule):
        raise ValueError(f"rule {rule.name!r} is registered already; choose another name")
    RULES[rule.name] = rule


def _own_rule(thing: Any) -> Rule:
    """An instance; a class of rules that needs no arguments makes its own."""
    if inspect.isclass(thing) and issubclass(thing, Rule):
        with contextlib.suppress(TypeError):  # then it is refused as the class that it is
            thing = thing()
    check_rule(thing, ", ".join(sorted(RULES)))
    rule: Rule = thing
    return rule


def default_rule(kind: str, greedy: bool, parents: Parents | None = None) -> Rule:
    """The best exact rule for a drafter's ``kind`` of guesses, and temperature 0 or above.

    ``parents`` is the tree that the guesses form; None: a chain.
    """
    if kind not in KINDS:
        raise ValueError(f"no kind of guesses {kind!r}; there are {', '.join(KINDS)}")
    if greedy:
        return RULES["greedy"]
    return RULES["block" if kind == "sampled" and parents is None else "coupled"]


def check(rule: Rule, kind: str, greedy: bool, parents: Parents | None = None) -> None:
    """Raises ValueError unless ``rule`` is lossless for this kind of guesses.

    Args:
      rule: the rule asked for.
      kind: one of ``KINDS``.
      greedy: whether every row has temperature 0.
      parents: the tree that the guesses form; None: a chain.
    """
    best = default_rule(kind, greedy, parents).name
    if rule.greedy_only and not greedy:
        raise ValueError(
            f"rule {rule.name!r} is exact at temperature 0 only: set temperature=0 "
            f"or use rule {best!r}"
        )
    if parents is not None and not rule.trees:
        able = ", ".join(repr(name) for name, r in RULES.items() if r.trees)
        raise ValueError(
            f"rule {rule.name!r} verifies chains, and these guesses form a tree of {len(parents)}: "
            f"use rule {best!r} (of trees: {able})"
        )
    if greedy and kind == "sampled":
        kind = "one_hot"  # at temperature 0 a drafter's law is a point mass too
    if kind not in rule.takes:
        other = "draw them 'one_hot' or 'coupled'" if best == rule.name else f"use rule {best!r}"
        raise ValueError(
            f"rule {rule.name!r} does not take {kind} guesses: {rule.refusal}; {other}"
        )
