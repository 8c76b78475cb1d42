"""Whether a verification rule is one, by its fields and by the shape of its verdicts."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core import trees
from specjax.core.by_shape import Misfit, by_shape, is_ours, shape, takes
from specjax.core.types import KINDS, Proposal, Verdict
from specjax.verify.base import Rule, VerifyKeys

_SEEN: set[Any] = set()  # rules, with proposals whose verdicts were found right


def check_rule(rule: Any, known: str) -> None:
    """Raises ValueError, in one line, on what is no rule; ``known`` are the registered names."""
    if not isinstance(rule, Rule):
        what = rule.__name__ if inspect.isclass(rule) else f"a {type(rule).__name__}"
        raise Misfit(
            f"{what} is no rule: hand over an instance of a subclass of specjax.verify.Rule, or "
            f"the name of a registered one, {known}."
        )
    kind = type(rule)
    lacking = [f for f in ("name", "takes") if not hasattr(rule, f)]
    if kind.law is Rule.law:
        lacking.append("law()")
    if lacking:
        raise Misfit(
            f"rule {kind.__name__} lacks {', '.join(lacking)}; see specjax/verify/base.py."
        )
    if not isinstance(rule.name, str):
        raise Misfit(f"rule {kind.__name__}: name is {rule.name!r}; must be a string.")
    given = (rule.takes,) if isinstance(rule.takes, str) else tuple(rule.takes)
    if isinstance(rule.takes, str) or set(given) - set(KINDS) or not given:
        raise Misfit(
            f"rule {rule.name!r} takes {sorted(map(str, given))}; name the kinds of guesses for "
            f"which it is exact, as a set: {', '.join(KINDS)}."
        )
    for method, names in (("law", ("logits", "proposal")), ("sample", ("keys", "law"))):
        said = takes(getattr(rule, method), names)
        if said is not None:
            raise Misfit(
                f"rule {rule.name!r}: {method} must take ({', '.join(names)}), and takes {said}."
            )
    try:
        hash(rule)
    except TypeError as error:
        raise Misfit(
            f"rule {rule.name!r} cannot be compiled in: {error}; make it a frozen dataclass whose "
            "fields are numbers, strings or tuples."
        ) from None


def check_verdict(rule: Rule, proposal: Proposal, vocab_size: int, *, law: bool = False) -> None:
    """Raises ValueError, in one line, on verdicts of another shape than the cycle keeps.

    Args:
      rule: of which `check_rule` found nothing.
      proposal: shapes of a batch's guesses.
      vocab_size: V.
      law: whether the law's own numbers are looked at too, which only an audit reads; without it
        the rules of this library are passed over.
    """
    if is_ours(rule) and not law:
        return
    proposal = dataclasses.replace(proposal, wanted=None)  # what is not wanted is no guess to it
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), proposal)
    seen = (rule, law, vocab_size, shape(row.tokens), row.q is None, row.parents)
    if seen in _SEEN:
        return
    W, parents = row.tokens.shape[0], proposal.parents
    M = W if parents is None else trees.num_levels(parents)
    logits = jax.ShapeDtypeStruct((W + 1, vocab_size), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    noise = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), W + 1))
    name = f"rule {rule.name!r}"

    def sample(keys: VerifyKeys, logits: Any, proposal: Proposal) -> Any:
        found = rule.law(logits, proposal)
        if type(rule).sample is Rule.sample:
            _check_fields(found, name)
        verdict = rule.sample(keys, found)
        if not isinstance(verdict, Verdict):
            raise Misfit(
                f"{name}: sample() returns a {type(verdict).__name__}; it must be a "
                "specjax.core.types.Verdict(tokens, num_accepted)."
            )
        return verdict

    verdict = by_shape(f"{name}: a verdict", sample, VerifyKeys(key, key, noise), logits, row)
    _is(f"{name}: tokens of a verdict", verdict.tokens, f"int32[{M + 1}]", "guesses and one")
    _is(f"{name}: num_accepted", verdict.num_accepted, "int32[]", "written for one row")
    if (verdict.path is None) != (parents is None):
        which = "a tree of guesses needs" if verdict.path is None else "a chain of guesses has no"
        raise Misfit(f"{name}: path is {shape(verdict.path)}, and {which} path.")
    if verdict.path is not None:
        _is(f"{name}: path", verdict.path, f"int32[{M + 1}]", "places from the pending token on")
    if law:
        _check_law(rule, name, logits, row, M)
    _SEEN.add(seen)


def _check_fields(law: Any, name: str) -> None:
    lacking = [f for f in ("guesses", "survival", "emission") if not hasattr(law, f)]
    if lacking:
        raise Misfit(
            f"{name}: law() returns a {type(law).__name__}, which lacks {', '.join(lacking)}; see "
            "specjax.verify.Law."
        )


def _check_law(rule: Rule, name: str, logits: Any, row: Proposal, num_levels: int) -> None:
    V = logits.shape[1]

    def read(logits: Any, proposal: Proposal) -> Any:
        found = rule.law(logits, proposal)
        _check_fields(found, name)
        return found.survival, found.emission(jnp.int32(0))

    survival, emission = by_shape(f"{name}: law()", read, logits, row)
    _is(f"{name}: survival", survival, f"float32[{num_levels}]", "one a guess")
    _is(f"{name}: emission(i)", emission, f"float32[{V}]", "a law over the vocabulary")


def _is(what: str, got: Any, wanted: str, words: str) -> None:
    if shape(got) != wanted:
        raise Misfit(f"{what} has shape {shape(got)}; must be {wanted}, {words}.")
