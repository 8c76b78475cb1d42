"""Speculation over memory of every kind: windowed, latent and recurrent targets and drafts.

The law of what is written never depends on a layer. What is tested here is that no entry remembers
what was not committed, or forgets what was.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import checks
import jax
import pytest
import tiny
import tiny_families
from checks import STEPS
from conftest import thinned

import specjax
from specjax.checkpoint.drafters.named import as_spec
from specjax.drafters import LM
from specjax.models import FAMILIES

WARM = {"temperature": [0.0, 1.0, 0.0, 1.0], "seed": [3, 1, 4, 1], "rule": "coupled"}


@functools.cache
def plain_texts(target: specjax.Model) -> list[list[int]]:
    """By plain decoding; greedy rows are those of passes without a cache, too."""
    prompts = tiny.prompts(4)
    want = specjax.generate(target, None, prompts, max_new_tokens=STEPS, **WARM).tokens
    for b in (0, 2):
        text = prompts[b] + want[b]
        logits = tiny.full_logits(target, [text + [0] * (64 - len(text))])[0]
        assert logits[len(prompts[b]) - 1 : len(text) - 1].argmax(-1).tolist() == want[b]
    return want


def same_as_plain(target: specjax.Model, drafter: specjax.drafters.Spec) -> float:
    """Greedy and sampled rows, against plain decoding and against no cache at all. Returns tau."""
    want = plain_texts(target)
    assert len({tuple(w) for w in want}) == 4
    out = specjax.generate(target, drafter, tiny.prompts(4), max_new_tokens=STEPS, **WARM)
    assert out.tokens == want
    return out.tau


@pytest.mark.parametrize("kind", ["ring", "latent", "recurrent", "mixed"])
def test_text_is_the_targets_own_with_a_draft_of_its_kind(kind: str) -> None:
    target = tiny_families.model(kind, layers=2 if kind == "mixed" else 1)
    assert 1.5 < same_as_plain(target, LM(tiny.near(target), 3)) < 4.0
    assert same_as_plain(target, LM(target, 3)) == 4.0  # always right: nothing falls behind


# The others are asked of a published hybrid, below.
@pytest.mark.parametrize(
    "name", thinned(["ngram", "dflash", "eagle3", "medusa"], "dflash", "medusa")
)
def test_text_is_the_targets_own_with_other_drafters(name: str) -> None:
    target = tiny_families.model("mixed", layers=2)
    tau = same_as_plain(target, tiny.make(name, 3, target=target))
    assert tau > 1.0 or name != "ngram"


# Those that stand in the registry; names of one class are one family.
PUBLISHED = sorted({cls: name for name, cls in reversed(FAMILIES.items())}.values())


KNOWN = ("gemma3_text", "gpt_oss", "kimi_k25", "llama", "ministral", "mistral", "qwen2", "qwen3")
KNOWN += ("qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe")
# A lookup sees no layer; blocks are tested on llama and qwen3 (test_decode) and on a hybrid, below;
# so small, ministral is mistral.
ALIKE = [f"{family} ngram" for family in KNOWN] + [f"{family} dflash" for family in KNOWN[3:]]
CELLS = [f"{family} {name}" for family in PUBLISHED for name in ("ngram", "lm", "dflash")]


@pytest.mark.parametrize("cell", thinned(CELLS, *ALIKE, "ministral lm"))
def test_text_is_the_targets_own_of_every_family(cell: str) -> None:
    """Greedy and sampled rows, guessed by a lookup, by a draft of its kind and by a block."""
    family, name = cell.split()
    target = tiny.model(family)
    if name == "lm":
        assert 1.2 < same_as_plain(target, LM(tiny.near(target), 3)) < 4.0
    else:
        tau = same_as_plain(target, tiny.make(name, 3, target=target))
        assert tau > 1.0 or name != "ngram"


@functools.cache
def published_hybrid(path: Path) -> specjax.Model:
    return specjax.load(path, dtype="float32")


@pytest.mark.parametrize("name", ["ngram", "lm", "dflash", "mtp", "medusa_tree"])
def test_text_of_a_published_hybrid_is_its_own(name: str, shared: Path) -> None:
    """Qwen3.5 with the memory that its authors' code keeps: gated delta rules and attention."""
    target = published_hybrid(shared / "parity" / "qwen3-5")
    entries = [type(e).__name__ for e in target.net.init_cache(1, 8).layers]
    assert {"Recurrent", "Full"} == set(entries)
    first = dataclasses.replace(target, net=target.net.first(2))  # recurrent itself
    made = {"mtp": lambda: as_spec("mtp:3", target), "lm": lambda: LM(first, 3)}
    spec = made.get(name, lambda: tiny.make(name, 3, target=target))()
    out = specjax.generate(target, spec, tiny.prompts(4), max_new_tokens=STEPS, **WARM)
    assert out.tokens == plain_texts(target)
    assert sum(len(c.proposed) for c in out.trace) > 20
    assert out.tau > 1.05 or name not in ("lm", "mtp")  # the others know nothing of it


def test_state_is_that_of_a_fresh_prefill() -> None:
    """Path independence: also after cycles whose last guess, never fed, was right."""
    target = tiny_families.model("mixed", layers=2)
    checks.fresh_state("lm", target, noise=0.01, tolerance=2e-4)


@functools.cache
def of_few_layers() -> tuple[specjax.Model, specjax.Model]:
    """A target with every kind of layer, and a draft with one that is recurrent."""
    return tiny_families.model("mixed"), tiny_families.model("recurrent", layers=1)


def test_stale_memory_is_never_read() -> None:
    checks.stale_memory("lm", *of_few_layers())


def test_the_loop_updates_every_entry_in_place() -> None:
    checks.in_place("lm", *of_few_layers())


def test_memory_follows_the_text_or_the_window_or_nothing() -> None:
    small, large = (
        tiny_families.model("mixed").net.init_cache(2, slots).layers for slots in (64, 1024)
    )

    def num_bytes(entry: object) -> int:
        return sum(x.nbytes for x in jax.tree.leaves(entry))

    growth = [num_bytes(b) / num_bytes(a) for a, b in zip(small, large, strict=True)]
    assert growth == [1.0, 1.0, 16.0, 16.0]  # recurrent, ring, latent, full
    assert small[1].keys.shape[2] == tiny_families.WINDOW - 1
