"""The audit's check of states: what is right passes, and each planted fault is named by its law."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny_families

from specjax.core.types import Array, Kept, Proposal, pytree, static
from specjax.drafters import LM
from specjax.drafters.base import Context
from specjax.lab.audit import audit

K, BASE = 3, 97

# Fault -> the law it breaks, and what the counterexample says.
FAULTS = {
    "takes the first rejected guess": ("law 3", "a fresh state of that text"),
    "takes every guess": ("law 3", "a fresh state of that text"),
    "hears nothing of the last guess": ("law 3", "a fresh state of that text"),
    "changes when nothing is committed": ("law 6", "committing nothing leaves a state that"),
    "looks at the row before": ("law 4", "with other rows"),
    "looks at the mean of all rows": ("law 4", "with other rows"),
    "keeps its guesses": ("law 3", "a fresh state of that text"),
    "counts cycles": ("law 3", "a fresh state of that text"),
    "forgets what was prefilled": ("law 3", "a state that was prefilled 5 tokens at a time"),
    "reads behind the text": ("law 3", "behind it are other tokens"),
    "grows from nothing": ("law 5", r"after grow\(\) the state"),
    "a law that drifts": ("law 3", r"reports for guess 1 q = \[0"),
}
VARIANTS = ("right", *FAULTS)


@pytree
class Digest:
    """Guesses by a number that sums up the text before the pending token, in order.

    Which fault it has is traced: all share their programs.
    """

    variant: Array  # [] int32
    vocab: int = static()
    kind: str = static(default="one_hot")
    parents: Any = static(default=None)

    num_draft = K
    taps = ()

    def has(self, fault: str) -> Array:
        return self.variant == VARIANTS.index(fault)

    def init(self, rows: int, slots: int) -> Any:
        return jnp.zeros((rows,), jnp.int32), jnp.zeros((rows,), jnp.int32)  # digest, and a memory

    def fold(self, digest: Array, tokens: Array, count: Array) -> Array:
        for i in range(tokens.shape[1]):
            digest = jnp.where(i < count, (5 * digest + tokens[:, i] + 1) % BASE, digest)
        return digest

    def prefill(self, state: Any, tokens: Array, count: Array, features: Any) -> Any:
        digest, memory = state
        forgets = self.has("forgets what was prefilled") & (count > 0)
        return self.fold(jnp.where(forgets, 0, digest), tokens, count), memory

    def propose(self, state: Any, context: Context) -> tuple[Proposal, Any]:
        digest, memory = state
        before = jnp.where(self.has("looks at the row before"), jnp.roll(digest, 1), 0)
        mean = jnp.where(self.has("looks at the mean of all rows"), digest.sum(), 0)
        behind = jnp.take_along_axis(context.tokens, context.length[:, None], 1)[:, 0]
        behind = jnp.where(self.has("reads behind the text"), behind, 0)
        kept = jnp.where(self.has("keeps its guesses") | self.has("counts cycles"), memory, 0)
        first = digest + context.pending[:, 0] + before + mean + behind + kept
        guess = (first[:, None] + jnp.arange(K)[None]) % self.vocab
        q = None
        if self.kind == "sampled":  # with a law, for what guesses alone do not show
            drift = jnp.where(self.has("a law that drifts"), memory.astype(jnp.float32), 0.0)
            scores = jax.nn.one_hot(guess, self.vocab) * (5.0 + drift)[:, None, None]
            q = jax.nn.softmax(scores)
        return Proposal(guess, q, self.parents), (state, guess)

    def update(self, held: Any, kept: Kept) -> Any:
        (digest, memory), guess = held
        count, some = kept.count, kept.count > 0
        count = jnp.where(self.has("takes the first rejected guess") & some, count + 1, count)
        count = jnp.where(self.has("takes every guess") & some, K + 1, count)
        count = jnp.where(self.has("hears nothing of the last guess"), jnp.minimum(count, K), count)
        digest = self.fold(digest, kept.tokens, count)
        changes = self.has("changes when nothing is committed") & ~some
        digest = jnp.where(changes, digest + 1, digest)
        new = jnp.where(self.has("keeps its guesses"), guess[:, -1], memory + 1)
        memory = jnp.where(some, new, memory)
        return digest, memory

    def grow(self, state: Any, slots: int) -> Any:
        digest, memory = state
        return jnp.where(self.has("grows from nothing"), 0, digest), memory


@pytree
class Uncut(Digest):
    """It says that it can go back to an earlier place of the text, and stays where it is."""

    def cut(self, state: Any, length: Array) -> Any:
        return state


@dataclasses.dataclass(frozen=True)
class Digests:
    variant: str = "right"
    kind: str = "one_hot"
    parents: Any = None
    drafter: Any = Digest

    def bind(self, target: Any, kind: str) -> Digest:
        index = jnp.int32(VARIANTS.index(self.variant))
        return self.drafter(index, target.config.vocab_size, self.kind, self.parents)


def check_of(drafter: Any) -> Any:
    report = audit(drafter, checks=["state"])
    assert [c.name for c in report.checks] == ["state"]
    return report


@pytest.mark.parametrize("kind", ["one_hot", "sampled"])
def test_a_right_state_passes(kind: str) -> None:
    report = check_of(Digests(kind=kind))
    assert report.passed, str(report)
    words = report.checks[0].tested
    accepted = re.search(r"(\d+) of 144 accept all guesses, (\d+) commit nothing", words)
    assert accepted and min(map(int, accepted.groups())) > 12  # every verdict occurs


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_state_is_found(fault: str) -> None:
    law, words = FAULTS[fault]
    report = check_of(Digests(fault, "sampled" if "law" in fault else "one_hot"))
    assert not report.passed and "FAULTY STATE: Digests" in report.verdict
    found = str(report.failed[0].counterexample)
    assert re.search(words, found) and f"({law}, " in found, found
    assert re.search(r"Prompt \[.*\], (before any cycle|after \d cycles? .* text \[)", found), found


def test_a_state_that_is_not_cut_is_found() -> None:
    found = str(check_of(Digests(drafter=Uncut)).failed[0].counterexample)
    assert re.search(r"Another turn that shares \d+ tokens .* of which \d+ were kept", found)
    assert "the state that was cut and fed on guesses" in found and "(law 3, " in found


def test_trees() -> None:
    tree = (0, 0, 1)
    assert check_of(Digests(parents=tree)).passed
    for fault in ("takes every guess", "keeps its guesses"):
        found = str(check_of(Digests(fault, parents=tree)).failed[0].counterexample)
        assert "a fresh state of that text" in found and "(law 3, " in found


def bigram(shared: Path) -> Any:
    path = shared / "cases" / "drafters" / "bigram.py"
    spec = importlib.util.spec_from_file_location("bigram_of_others", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_drafters_of_others(shared: Path) -> None:
    module = bigram(shared)
    assert check_of(module.good).passed
    report = check_of(module.faulty)
    found = str(report.failed[0].counterexample)
    assert re.search(r"text \[[\d, ]+\]: the state guesses \[.*\], and a fresh state .* \[", found)


def test_a_drafter_with_caches() -> None:
    report = check_of("eagle3")
    assert report.passed, str(report)


def test_a_recurrent_draft_that_is_sometimes_sure() -> None:
    draft = tiny_families.model("recurrent", vocab=4, layers=1)
    report = check_of(LM(draft, 3, min_confidence=0.5))
    assert report.passed and not report.notes, str(report)  # with its own network
