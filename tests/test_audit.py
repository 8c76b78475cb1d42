"""The audit finds every planted fault, says where, and lets what is right pass."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import markov
import pytest
from markov import Markov, MarkovDrafter

from specjax import decode, sampling
from specjax.core import keys
from specjax.core.cache import full
from specjax.core.noise import gumbel_argmax
from specjax.core.types import Array, pytree
from specjax.lab.audit import CHECKS, Check, audit
from specjax.sampling import Counts
from specjax.verify import Token

Patch = pytest.MonkeyPatch
FILE = Path(markov.__file__)
TEXTS = 4000

# --- the drafters: one honest, one that only looks odd, and faulty ones ---------------------------

VARIANTS = (
    "honest",
    "stops behind an unlikely guess",  # which is itself verified: no guess decides about itself
    "argmax scored as sampled",
    "noise shared with the residual",
    "noise shared with the coin",
    "look-ahead",  # a guess is left out because of what it turned out to be
    "look at the next",  # the first guess is left out because of the second
)


@pytree
class Variant(MarkovDrafter):
    """Which one is traced, so that all share one compiled program."""

    variant: Array | None = None  # [] int32

    def is_(self, name: str) -> Array:
        assert self.variant is not None
        return self.variant == VARIANTS.index(name)

    def draw(self, key: Array, length: Array, index: int, logits: Array) -> Array:
        noise = jax.random.fold_in(keys.at(key, length, keys.DRAFT), index)
        if index == 0:
            for name, role in (("residual", keys.RESIDUAL), ("coin", keys.ACCEPT)):
                shared = self.is_(f"noise shared with the {name}")
                noise = jnp.where(shared, keys.at(key, length, role), noise)
        best = logits.argmax().astype(jnp.int32)
        guess = gumbel_argmax(noise, logits)
        return jnp.where(self.is_("argmax scored as sampled"), best, guess)

    def keep(self, guesses: Array, laws: Array) -> Array:
        chance = jnp.take_along_axis(laws, guesses[:, None], 1)[:, 0]
        unlikely = (chance < 0.3).astype(jnp.int32)
        upto = unlikely.cumsum()
        out = self.is_("stops behind an unlikely guess") & (upto - unlikely > 0)
        out |= self.is_("look-ahead") & (upto > 0)
        out |= self.is_("look at the next") & (chance[1] < 0.4)
        return jnp.where(out, -1, guesses)


@dataclasses.dataclass(frozen=True)
class Drafts:
    variant: str = "honest"

    def bind(self, target: Any, kind: str) -> Variant:
        inner = Markov().bind(target, kind)
        index = jnp.int32(VARIANTS.index(self.variant))
        return Variant(inner.logits, inner.num_draft, variant=index)


def test_an_honest_method_passes_every_check() -> None:
    seen: list[Check] = []
    report = audit(Drafts(), texts=TEXTS, watch=seen.append)
    assert report.passed and not report.failed, str(report)
    assert [c.name for c in report.checks] == list(CHECKS) and seen == list(report.checks)
    assert report.rule == "rule block and greedy" and report.drafter == "Drafts"
    for check in report.checks:
        assert check.counterexample is None and check.seconds > 0
        if check.name in ("guesses", "verdicts", "texts", "stops"):
            assert check.p_value > 1e-3 and check.power == 0.99 and 0.1 < check.detects < 0.16
    assert report.checks[0].statistic < 1e-12
    text = str(report)
    assert "No fault found: Drafts with rule block and greedy passed 9 checks" in text
    assert "the first guess was accepted in" in text
    assert json.loads(json.dumps(report.to_json()))["passed"] is True


def test_stopping_behind_an_unlikely_guess_passes() -> None:
    drafter = Drafts("stops behind an unlikely guess")
    report = audit(drafter, texts=TEXTS, checks=["guesses", "verdicts", "texts"])
    assert report.passed, str(report)


VERDICT = r"first guess is \d: \d accepted and then token \d came .* the rule says"
FAULTY = {
    "argmax scored as sampled": (
        "guesses",
        r"guess 1: token \d came \d+ times in \d+, with probability .* q says 0\.\d+",
    ),
    "noise shared with the residual": ("verdicts", VERDICT),
    "noise shared with the coin": ("verdicts", VERDICT),
    "look-ahead": ("guesses", r"Prompt \[2\].*guess 1: token \d came"),
    "look at the next": ("guesses", r"guess 1: token \d came"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_drafter_is_found(fault: str) -> None:
    name, words = FAULTY[fault]
    checks = ["guesses"] if name == "guesses" else ["guesses", "verdicts"]
    report = audit(Drafts(fault), texts=TEXTS, checks=checks)
    assert [c.name for c in report.failed] == [name], str(report)  # and no other
    assert report.failed[0].p_value < 1e-5
    assert re.search(words, str(report.failed[0].counterexample)), report.failed[0].counterexample
    assert "NOT LOSSLESS: Drafts" in report.verdict


def test_shared_noise_is_a_method_under_coupling() -> None:
    report = audit("ngram", "coupled", texts=500, checks=["guesses", "coupling"])
    assert report.passed and [c.name for c in report.checks] == ["guesses", "coupling"]
    assert "of one_hot kind" in report.checks[0].tested


# --- planted faults: the target's side ------------------------------------------------------------


def temperature_after_top_p(patch: Patch) -> None:
    def warp_row(logits: Array, options: Any) -> Array:
        heat = options.temperature
        at_1 = dataclasses.replace(options, temperature=jnp.where(heat > 0, 1.0, 0.0))
        return right(logits, at_1) / jnp.where(heat > 0, heat, 1.0)

    right = sampling._warp_row
    patch.setattr(sampling, "_warp_row", warp_row)


def penalties_ignore_the_guesses(patch: Patch) -> None:
    def counts(counts: Counts | None, guesses: Array, parents: Any = None) -> Counts | None:
        if counts is None:
            return None
        output = jnp.repeat(counts.output[:, None], guesses.shape[1] + 1, axis=1)
        return Counts(counts.prompt, output)

    patch.setattr(decode, "count_prefixes", counts)


def one_stale_slot_is_read(patch: Patch) -> None:
    def valid_slots(size: int, length: Array) -> Array:
        return jnp.arange(size)[None, :] <= length[:, None]

    patch.setattr(full, "valid_slots", valid_slots)


def a_rejected_stop_token_stops(patch: Patch) -> None:
    """The stop is looked for among the guesses, accepted or not."""

    def commit_count(verdict: Any, request: Any, state: Any) -> tuple[Array, Array]:
        count, stopped = right(verdict, request, state)
        last = jnp.take_along_axis(verdict.tokens, verdict.num_accepted[:, None], 1)
        seen = (verdict.tokens == 1) & (request.stop_ids == 1)
        return count, stopped | (seen[:, -1] & (last[:, 0] != 1) & ~state.done)

    right = decode.commit_count

    def verify(rule: Any, request: Any, length: Any, logits: Any, proposal: Any, best: Any) -> Any:
        verdict = checked(rule, request, length, logits, proposal, best)
        guesses = jnp.pad(proposal.tokens, ((0, 0), (0, 1)), constant_values=-1)
        behind = jnp.arange(guesses.shape[1])[None, :] > verdict.num_accepted[:, None]
        tokens = jnp.where(behind, jnp.roll(guesses, 1, axis=1), verdict.tokens)
        return dataclasses.replace(verdict, tokens=tokens)

    checked = decode.verify
    patch.setattr(decode, "verify", verify)
    patch.setattr(decode, "commit_count", commit_count)


PLANTED: dict[Callable[[Patch], None], tuple[str, str]] = {
    temperature_after_top_p: (
        "texts",
        r"Prompt \[1, 3, 0\], temperature 1.6 with top-p 0.75: after \[.*\] token \d ",
    ),
    penalties_ignore_the_guesses: (
        "texts",
        r"Prompt \[0, 2\], temperature 1 with penalties: after \[.*\] token \d came \d+ times",
    ),
    a_rejected_stop_token_stops: ("stops", r"Prompt \[2, 0\], .* ends without a stop token"),
    one_stale_slot_is_read: ("stale", r"the cycle that starts at position \d+ guesses .* is read"),
}


@pytest.mark.parametrize("fault", PLANTED, ids=lambda f: f.__name__)
def test_a_faulty_cycle_is_found(fault: Callable[[Patch], None], monkeypatch: Patch) -> None:
    name, words = PLANTED[fault]
    fault(monkeypatch)
    # Compiled anew: nothing traced without the fault may serve with it, nor the other way.
    for program, static in (("run", {"static_argnames": "rule"}), ("prefill", {})):
        old = getattr(decode, program)
        fresh = jax.jit(
            lambda *args, f=old, **kwargs: f(*args, **kwargs),
            static_argnums=2 if static else None,
            static_argnames=None if static else "width",
        )
        monkeypatch.setattr(decode, f"{program}_program", fresh)
    report = audit(Markov(), texts=2000, checks=[name])
    assert [c.name for c in report.failed] == [name], str(report)
    assert re.search(words, str(report.failed[0].counterexample)), report.failed[0].counterexample


@pytest.mark.parametrize("rule", [markov.forgotten, Token()], ids=lambda r: r.name)
def test_the_exact_law_of_a_rule(rule: Token) -> None:
    report = audit(Markov(), rule, checks=["rule"])
    assert report.passed == (rule.name == "token")
    if not report.passed:
        found = report.checks[0]
        assert re.search(r"Rule forgotten, .*'random'.* the text \[", str(found.counterexample))
        assert found.statistic > 1e-3
