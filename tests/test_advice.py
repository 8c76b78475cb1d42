"""Advice fits the drafter: what was never trained nor loaded is not told to be."""

from __future__ import annotations

import itertools
import re

import jax.numpy as jnp
import pytest
import tiny
from markov import MarkovDrafter
from test_cost_model import BUSY, EXPERTS, KS, costs, run_of

import specjax
from specjax import drafters
from specjax.core.family import Family, parse_family
from specjax.drafters.family import family_of
from specjax.lab.costs.explain import explain

# About weights that somebody trained, or files that somebody read.
ABOUT_WEIGHTS = re.compile(
    r"train|misread|checkpoint|check_drafter|regenerate|fewer layers|vocabulary|distill|tap|rotary"
)
RUNS = [run_of({0: 80, 1: 20}, 4), run_of({4: 90, 0: 10}, 4), run_of({0: 99, 1: 1}, 8)]
MACHINES = [
    {},
    {"draft": {k: 0.8 * k for k in KS}},
    {"draft": dict.fromkeys(KS, 0.9), "draft_calls": dict.fromkeys(KS, 1)},
    {"batch": 32, "verify": BUSY},
    {"verify": EXPERTS},
    {"noise": 0.5},
]


@pytest.mark.parametrize("family", list(Family))
def test_no_advice_is_about_what_a_drafter_has_not(family: Family) -> None:
    told = [
        explain(run, costs(**machine), speedup=speedup, family=family)
        for run, machine, speedup in itertools.product(RUNS, MACHINES, (None, 0.4))
    ]
    texts = [text.text for text in told]
    # Of every limit, not of the first alone.
    texts += [line for text in told for limit in text.limits for line in limit.advice]
    found = {word for text in texts for word in ABOUT_WEIGHTS.findall(text)}
    if family is Family.LOOKUP:
        assert not found
    if family is Family.OWN:
        assert found <= {"check_drafter"}
    if family is Family.TRAINED:
        assert found >= {"train", "misread", "fewer layers", "regenerate"}
    if family is Family.MODEL:
        assert {"distill", "check_drafter"} <= found and "misread" not in found


def test_the_family_is_found() -> None:
    target = tiny.model("llama")
    for name in ("dflash", "eagle3", "medusa"):
        assert family_of(tiny.make(name, target=target)) is Family.TRAINED
    assert family_of(drafters.LM(tiny.draft(), 3)) is Family.MODEL
    assert family_of(drafters.NGram(3)) is Family.LOOKUP
    assert family_of(drafters.NoDraft()) is Family.NONE
    assert family_of(MarkovDrafter(jnp.zeros((3, 3)), 2)) is Family.OWN
    # Files of older versions name none, and a stranger's name tells nothing.
    assert parse_family(None, "ngram") is Family.LOOKUP
    assert parse_family(None, "export") is parse_family("spam") is Family.OWN
    assert parse_family("trained", "ngram") is Family.TRAINED
    # What is generated says it, so that a stored trace is explained as well.
    trace = specjax.generate(target, drafters.NGram(3), [1, 2, 3], max_new_tokens=2).trace
    assert trace.setup["family"] == "lookup"


def test_a_lookup_that_finds_nothing_is_not_called_misread() -> None:
    target = tiny.model("llama")
    report = specjax.check_drafter(
        target, drafters.NGram(3, min_ngram=3), prompts=[[1, 2]], cycles=4
    )
    assert not report.passed and report.family is Family.LOOKUP and not report.trials
    assert len(report.causes) == 1 and not ABOUT_WEIGHTS.search("\n".join(report.causes))
    assert "had something to guess in" in str(report)
    own = specjax.check_drafter(
        target, drafters.LM(tiny.model("llama", seed=9), 3), prompts=[[1, 2]], cycles=4
    )
    assert "never trained like the target" in own.causes[0] and len(own.causes) == 2
    shy = drafters.LM(tiny.model("llama", seed=9), 3, min_confidence=1.0)
    timid = specjax.check_drafter(target, shy, prompts=[[1, 2]], cycles=4)
    assert "min_confidence=1: a guess was worth verifying in 0% of the cycles" in timid.causes[0]
