"""Rows that change hands: no text and no cycle depends on when, where or beside whom it ran."""

from __future__ import annotations

import dataclasses
from typing import Any

import checks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_families
from conftest import thinned

import specjax
from specjax import session
from specjax.core.compiles import Compiles
from specjax.core.types import pytree
from specjax.drafters import DRAFTERS, LM
from specjax.drafters.ngram import NGram
from specjax.sampling import Options
from specjax.session import refill
from specjax.session.refill import Finished, Refill
from specjax.session.warming import warm_up
from specjax.trace.clock import passes

FEW = thinned(DRAFTERS, "none", "dflash2", "dspark", "medusa", "mtp", "early_exit")


def requests(num: int, seed: int = 0, *, longest: int = 40) -> list[session.Row]:
    """Prompts, limits, stop tokens, temperatures and truncations of all kinds."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(num):
        options = Options(
            temperature=float(rng.choice([0.0, 0.8])),
            top_k=int(rng.choice([0, 7])),
            repetition_penalty=float(rng.choice([1.0, 1.2])),
        )
        prompt = rng.integers(0, 31, size=int(rng.integers(1, longest))).tolist()
        stops = (3, 4) if i % 3 == 0 else ()
        rows.append(session.Row(prompt, options, i, int(rng.integers(1, 50)), stops))
    return rows


def facts(trace: specjax.Trace, row: int = 0) -> list[Any]:
    fields = ("position", "proposed", "accepted", "committed", "emitted", "path")
    return [[getattr(cycle, f) for f in fields] for cycle in trace.rows[row]]


def same_as_together(
    target: specjax.Model, spec: Any, rows: list[session.Row], **how: Any
) -> list[Finished]:
    """Each request's text and cycles are those that it has beside all others, begun together."""
    together = session.Session(target, spec, rows, rule="coupled")
    together.advance()
    want, tokens = together.trace(), together.new_tokens()
    got = sorted(Refill(target, spec, rows, rule="coupled", **how), key=lambda f: f.index)
    assert [f.index for f in got] == list(range(len(rows)))
    for f in got:
        assert f.tokens == tokens[f.index]
        assert facts(f.trace) == facts(want, f.index), f.index
    return got


@pytest.mark.parametrize("name", FEW)
def test_text_and_cycles_are_those_of_one_batch(name: str) -> None:
    target = tiny.model()
    draft = tiny.near(target) if name == "lm" else None
    spec = tiny.make(name, 3, target=target, model=draft)
    got = same_as_together(target, spec, requests(9), batch_size=3)
    assert any(a.entered > b.end for a in got for b in got)  # rows did change hands


def test_rows_of_every_kind_of_memory_change_hands() -> None:
    """Windows that have gone round and recurrent states are replaced whole; passes are short."""
    target = tiny_families.model("mixed", layers=2)
    spec = LM(tiny.near(target), 3)
    same_as_together(target, spec, requests(7, 1), batch_size=2, chunk=8)


def test_prompts_of_a_length_are_fed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight rows two at a time; what a row held before is poison, and nothing reads it."""
    target = tiny.model()
    rows = requests(16, 5, longest=100)
    fed: list[list[int]] = []
    lane_of, free = Refill.lane_of, refill.free_program
    monkeypatch.setattr(
        Refill, "lane_of", lambda self, some: fed.append(list(some)) or lane_of(self, some)
    )
    monkeypatch.setattr(refill, "free_program", lambda *args: poison(free(*args), args[1]))
    same_as_together(target, LM(tiny.near(target), 3), rows, batch_size=8, chunk=128)
    order, sizes = [i for some in fed for i in some], {len(some) for some in fed}
    assert sizes == {1, 2} and sorted(order) == list(range(16)) != order
    for some in fed:  # of one length, as passes count
        (width,) = {next(w for w in (16, 64, 128) if w >= len(rows[i].prompt) - 1) for i in some}
        assert len(some) * width <= 128


@jax.jit
def poison(state: Any, rows: Any) -> Any:
    """Everything in ``rows`` [B] but that they are done, and short."""

    def spoilt(path: Any, x: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True)
        if name in ("length", "done", "num_cycles"):
            return x
        bad = jnp.full_like(x, jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 7)
        return jnp.where(rows.reshape(-1, *[1] * (x.ndim - 1)), bad, x)

    return jax.tree.map_with_path(spoilt, state)


def test_every_leaf_of_a_row_is_replaced_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny.model()
    rows = requests(3, 6)
    session_ = Refill(target, LM(tiny.near(target), 3), rows, batch_size=3, details=True)
    lane = session_.lane_of([1])
    session_.feed_lane(lane)
    before = poison(session_.state, jnp.ones(3, bool)), session_.request
    place = jnp.int32(0), jnp.int32(2)
    after = refill.move_in(*before, lane.state, lane.layout.request, *place)
    old, new, came = (
        jax.tree.leaves_with_path(x) for x in (before, after, (lane.state, lane.layout.request))
    )
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in new]
    assert len(names) > 25 and len(set(names)) == len(names)
    for name, (_, x), (_, y), (_, z) in zip(names, old, new, came, strict=True):
        if name == "1/keys":
            x, y, z = map(jax.random.key_data, (x, y, z))
        if name == "0/num_cycles":
            assert x == y
            continue
        np.testing.assert_array_equal(y[2], z[0], err_msg=name)
        np.testing.assert_array_equal(y[:2], x[:2], err_msg=name)


def left(*names: str) -> Any:
    """`move_in` that leaves some of a row as it was."""
    whole = refill.move_in

    def but(state: Any, request: Any, lane: Any, asked: Any, *place: Any) -> Any:
        at = {name: getattr(state, name) for name in names if hasattr(state, name)}
        if "cache.length" in names:
            at["cache"] = dataclasses.replace(lane.cache, length=state.cache.length)
        if "keys" in names:  # noise of the place, and not of the request
            asked = dataclasses.replace(asked, keys=request.keys)
        return whole(state, request, dataclasses.replace(lane, **at), asked, *place)

    return but


@pytest.mark.parametrize("name", ["draft", "cache.length", "keys"])
def test_what_is_left_of_a_row_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a former draft the text would be right all the same: only the guesses tell."""
    target = tiny.model()
    spec = LM(tiny.near(target), 3)
    monkeypatch.setattr(refill, "move_in_program", left(name))
    with pytest.raises(AssertionError):
        same_as_together(target, spec, requests(7), batch_size=2)


def test_nothing_compiles_after_the_first_prompts() -> None:
    target, spec = tiny.model(), NGram(3)
    first = requests(6, 2, longest=64)
    # What the second run will meet: a pass of each width, and every option.
    first = [dataclasses.replace(r, prompt=[1] * n) for r, n in zip(first, (3, 30, 90, 5, 70, 9))]
    list(Refill(target, spec, first, batch_size=2, rule="coupled"))
    compiles = Compiles()
    done = list(Refill(target, spec, requests(12, 3, longest=90), batch_size=2, rule="coupled"))
    assert len(done) == 12 and compiles.count == 0
    # Slots that grow, with and without a lane beside them.
    long = [dataclasses.replace(r, max_new_tokens=300) for r in requests(5, 4, longest=90)]
    warm_up(Refill(target, spec, long, batch_size=2, rule="coupled"))
    compiles = Compiles()
    done = list(Refill(target, spec, long, batch_size=2, rule="coupled"))
    assert max(len(f.tokens) for f in done) == 300 and compiles.count == 0


def test_no_request_is_begun_far_ahead_of_the_first() -> None:
    """Also while slots grow under the first, with a prompt that waits beside it."""
    target, rows = tiny.model(), requests(8, 4)
    rows[0] = dataclasses.replace(rows[0], max_new_tokens=260, stop_token_ids=())
    order = [f.index for f in Refill(target, NGram(3), rows, batch_size=2, ahead=4)]
    assert max(order[: order.index(0)]) < 4 and sorted(order) == list(range(8))
    same_as_together(target, NGram(3), rows, batch_size=2, ahead=4)


def test_answers_come_in_order_and_end_at_stop_strings() -> None:
    target = specjax.load("demo:target", dtype="float32")
    prompts = ["def mean(values):", "class Stack:", "import os", "for i in"]
    how: dict[str, Any] = {"max_new_tokens": [30, 6, 40, 3], "stop": ["import", "("], "seed": 1}
    want = specjax.generate(target, "ngram:3", prompts, **how)
    assert set(want.finish) == {"stop", "length"}
    got = specjax.generate(target, "ngram:3", prompts, batch_size=2, **how)
    for name in ("text", "tokens", "prompt_tokens", "finish", "rule"):
        assert getattr(got, name) == getattr(want, name), name
    assert [facts(got.trace, b) for b in range(4)] == [facts(want.trace, b) for b in range(4)]
    each = list(specjax.generate_each(target, "ngram:3", prompts, batch_size=2, **how))
    assert [a.index for a in each] == [0, 1, 2, 3] and [a.text for a in each] == want.text
    together = passes(got.trace)  # two rows at most, and all cycles once
    assert {len(p) for p in together} == {1, 2} and sum(map(len, together)) == len(list(got.trace))
    assert got.trace.about.in_turn and got.trace.about.batch == 2
    assert all(a.begin < a.end for a in each)


@pytree
class Counting(NGram):
    """Keeps a number that belongs to no row."""

    def init(self, rows: int, slots: int) -> Any:
        return jnp.zeros((), jnp.int32)


def test_what_cannot_be_done_is_refused() -> None:
    target, rows = tiny.model(), requests(3)
    with pytest.raises(ValueError, match=r"batch_size every array .* must begin with the axis"):
        Refill(target, Counting(3), rows, batch_size=2)
    for bad in (0, -1, 1.5):
        with pytest.raises(ValueError, match="batch_size="):
            specjax.generate(target, None, tiny.prompts(2), batch_size=bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="No prompts"):
        specjax.generate(target, None, [], batch_size=2)
    with pytest.raises(ValueError, match="neither host_loop nor memory"):
        specjax.generate(target, None, tiny.prompts(2), batch_size=1, host_loop=True)


def test_the_law_of_texts_is_the_targets() -> None:
    """Rows that follow one another write what they write together, whose law is exact."""
    target, num = checks.law_target(), 120
    spec = LM(checks.law_draft(), checks.NUM_DRAFT)
    warm = Options(temperature=checks.HEAT)
    rows = [session.Row([checks.FIRST], warm, seed, checks.NEW, ()) for seed in range(num)]
    together = session.Session(target, spec, rows, rule="block")
    together.advance()
    turns = Refill(target, spec, rows, batch_size=30, rule="block")
    got = {f.index: f.tokens for f in turns}
    assert [got[i] for i in range(num)] == together.new_tokens()
    assert len({tuple(t) for t in got.values()}) > 40
