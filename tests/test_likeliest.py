"""Where the head finds the likeliest token by itself: what asks for it, and what asks for more."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny
from conftest import thinned

import specjax
from specjax import verify
from specjax.core.ops.likeliest import LIKELIEST
from specjax.core.platform import Platform
from specjax.core.types import Array
from specjax.drafters import LM
from specjax.drafters.base import Context
from specjax.drafters.drawing import best_of, draw, onto_target
from specjax.models.layers.decoder import Decoder
from specjax.models.vocabulary import Vocabulary
from specjax.sampling import Counts, Options, make_sampling

SAID = 4  # by heads that are asked for the likeliest token alone, whatever they would say
THERE = Platform("cpu", kernels="pallas")


@pytest.fixture(autouse=True)
def heads_that_say_so(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def say(x: Array, w: Any, names: Any, platform: Any) -> Array:
        del w, names, platform
        return jnp.full(x.shape[:-1], SAID, jnp.int32)

    monkeypatch.setitem(LIKELIEST.variants, "cpu:pallas", say)
    yield


def there(thing: Any) -> Any:
    """A model or drafter for a platform with such heads."""
    if isinstance(thing, LM):
        return dataclasses.replace(thing, model=there(thing.model))
    return dataclasses.replace(thing, net=thing.net.on(THERE))


def text_of(target: specjax.Model, spec: Any, **options: Any) -> Any:
    return specjax.generate(target, spec, [[3, 1]], max_new_tokens=5, **options)


NAMES = thinned(("lm", "dflash", "eagle3", "early_exit", "mtp"), "early_exit", "mtp")


@pytest.mark.parametrize("name", NAMES)
def test_greedy_drafters_ask_for_no_more(name: str) -> None:
    """Nor does the verdict: all guesses are what the head said, and right."""
    target = tiny.model()
    found = text_of(there(target), there(tiny.make(name, 2, target=target)))
    assert found.tokens == [[SAID] * 5] and found.tau == 2.5
    assert all(set(cycle.proposed) == {SAID} for cycle in found.trace)


@pytest.mark.parametrize(
    "kind,asked,known",
    [
        ("one_hot", {}, True),
        ("one_hot", {"temperature": 1.0}, True),
        ("coupled", {}, True),
        ("coupled", {"temperature": 1.0}, False),
        ("sampled", {}, False),
        ("one_hot", {"logit_bias": {SAID: -1.0}}, False),
        ("one_hot", {"presence_penalty": 1.0}, False),
    ],
)
def test_a_guess_is_what_the_head_said_where_no_more_is_asked(
    kind: str, asked: dict[str, Any], known: bool
) -> None:
    sampling = make_sampling([Options(**asked)], 31)
    row = jnp.zeros((1,), jnp.int32)
    counts = None
    if sampling.uses_counts:
        counts = Counts(jnp.zeros((1, 31), bool), jnp.zeros((1, 31), jnp.int32))
    context = Context(row[:, None], row, jax.random.split(jax.random.key(0), 1), sampling, counts)
    logits = jnp.zeros((1, 31)).at[0, 9].set(50.0)
    guess, law = draw(logits, kind, jnp.int32(0), counts, context, lambda: jnp.full((1,), SAID))
    assert guess.tolist() == [SAID if known else 9] and (law is not None) == (kind == "sampled")


def test_of_a_reduced_vocabulary_the_lowest_token_of_the_target_wins() -> None:
    """As in the whole one, into which it would be put: whatever the order of its rows."""
    ids = jnp.asarray([9, 2, 5], jnp.int32)
    logits = jnp.asarray([[1.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    best = best_of(logits, ids, None, None)
    assert best is not None and best.tolist() == [5, 2]
    assert onto_target(logits, ids, 31).argmax(-1).tolist() == [5, 2]


class Picky(verify.Greedy):
    """Accepts nothing."""

    name = "picky"

    def law(self, logits: Array, proposal: Any) -> Any:
        law: Any = super().law(logits, proposal)
        return dataclasses.replace(law, guesses=jnp.full_like(law.guesses, -1))


MORE: dict[str, dict[str, Any]] = {
    "a bias": {"logit_bias": {SAID: -100.0}},
    "a penalty": {"repetition_penalty": 1.3},
    "a temperature": {"temperature": 1.0},
    "details": {"details": True},
    "a rule of one's own": {"rule": Picky()},
}


@pytest.mark.parametrize("options", MORE.values(), ids=list(MORE))
def test_whoever_asks_for_more_is_given_logits(options: dict[str, Any]) -> None:
    target = tiny.model()
    found = text_of(there(target), None, **options)
    assert found.tokens == text_of(target, None, **options).tokens != [[SAID] * 5]


def test_of_a_head_of_ones_own_nothing_is_assumed() -> None:
    module = there(tiny.model()).net.module
    x = jnp.ones((1, 1, module.config.hidden_size))
    assert module.likeliest(x).tolist() == [[SAID]]

    class Turned(Decoder):
        def head(self, x: Array) -> Array:
            return -super().head(x)

    module.__class__ = Turned
    assert module.likeliest(x) is None

    class Other(Vocabulary):
        def head(self, x: Array) -> Array:
            return -super().head(x)

    table = jnp.ones((31, x.shape[-1]))
    said = [kind(table, table, THERE).likeliest(x) for kind in (Vocabulary, Other)]
    assert said[0] is not None and said[0].tolist() == [[SAID]] and said[1] is None
