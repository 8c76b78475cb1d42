"""Another turn on the caches of the last one: everything is as in a fresh start, but sooner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_families
from tiny_checkpoint import write_tiny

import specjax
from specjax.core.cache import Cache, Full, Ring
from specjax.core.types import pytree
from specjax.drafters import LM, NGram
from specjax.sampling import Options
from specjax.session import Row, Session

K = 3


def requests(prompts: list[list[int]], new: int, **options: Any) -> list[Row]:
    law = Options(**{"temperature": 0.8, **options})
    return [Row(p, law, seed, new, ()) for seed, p in enumerate(prompts)]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": [0.9, 0.0], "repetition_penalty": 1.3, "frequency_penalty": 0.2},
    ],
    ids=["greedy", "penalties"],
)
def test_turns_of_a_conversation_that_rewrites_them(options: dict[str, Any]) -> None:
    """As Qwen3's template drops the reasoning of earlier answers; the texts outgrow their slots."""
    target = tiny.model()
    spec = LM(tiny.near(target), K)
    memory, prompts, kept = specjax.Memory(), [[1, 2, 3], [4, 5]], []
    for turn, (new, more) in enumerate(((20, 9), (30, 190), (40, 9))):
        how = {"max_new_tokens": new, "seed": turn, "chunk": 16, **options}
        told = specjax.generate(target, spec, prompts, memory=memory, **how)
        fresh = specjax.generate(target, LM(spec.model, K), prompts, **how)
        assert told.tokens == fresh.tokens and told.finish == fresh.finish
        assert told.trace.survival() == fresh.trace.survival() and told.tau == fresh.tau
        kept.append(memory.kept)
        prompts = [p + t[len(t) // 2 :] + [turn] * more for p, t in zip(prompts, told.tokens)]
    assert kept[0] == [0, 0] and all(0 < a < b for a, b in zip(*kept[1:]))
    assert memory._session is not None and memory._session.num_slots == 512
    memory.forget()
    assert memory.kept == []


def test_a_memory_that_cannot_be_cut_begins_anew() -> None:
    """A window that has slid, a recurrent state: only a text that goes on is kept, row by row."""
    target = tiny_families.model("mixed")
    rows = [Row(p, Options(), 0, 14, ()) for p in ([1, 2, 3, 4], [5, 6], [7, 8, 9])]
    session = Session(target, NGram(K), rows, chunk=16)
    session.advance()
    texts = [[*row.prompt, *new] for row, new in zip(rows, session.new_tokens())]
    prompts = [[*texts[0], 3, 4, 5], [*texts[1][:-3], 30, 29], texts[2][:2]]
    rows = [Row(p, Options(), 0, 9, ()) for p in prompts]
    assert session.turn(rows, chunk=16)
    assert session.kept == [len(texts[0]) - 1, 0, 0]
    checks.same_cycles(session, Session(target, NGram(K), rows, chunk=16))


def test_what_cannot_be_cut_is_remembered_from_before_each_answer() -> None:
    """Of target and draft; answers are rewritten, and what asked for them is worded otherwise."""
    target, memory, fed = tiny_families.model("mixed"), specjax.Memory(), []
    spec, asks = LM(tiny.near(target), K), [2] * 9
    prompts = [[1, 2, 3] * 9, [4] * 30, [5, 6] * 3]
    for turn in range(3):
        how = {"max_new_tokens": 24, "seed": turn, "temperature": 0.8, "chunk": 32}
        asked = [[*p, *asks] for p in prompts]
        told = specjax.generate(target, spec, asked, memory=memory, **how)
        fresh = specjax.generate(target, spec, asked, **how)
        assert told.tokens == fresh.tokens and told.trace.survival() == fresh.trace.survival()
        fed.append([len(a) - k for a, k in zip(asked, memory.kept)])
        said = [t[5:] if b else [*asks, *t] for b, t in enumerate(told.tokens)]
        prompts = [[*p, *s, turn] for p, s in zip(prompts, said)]
    # From 16 tokens before the end of the last turn's prompt on; the last turn of row 2 but one had
    # none. Row 0 goes on: all is known but the last token, if the draft lacks none.
    new = 17 - len(asks) + 19 + 1 + len(asks)
    assert [row[1:] for row in fed[1:]] == [[new, 15 + 19 + 1], [new, new]], fed
    assert {row[0] for row in fed[1:]} <= {11, 17 + 24 + 1 + len(asks)}, fed


def test_a_mark_outlives_growth() -> None:
    """Of a window that is longer than the slots were."""
    rng = np.random.default_rng(0)
    ring = Ring.empty(2, 4, 1, 3, jnp.float32, window=8)
    cache = Cache((ring, Full.empty(2, 4, 1, 3, jnp.float32)), jnp.zeros((2,), jnp.int32))

    def add(cache: Cache, size: int) -> Cache:
        part = tuple(jnp.asarray(rng.normal(size=(2, 1, size, 3)), jnp.float32) for _ in "kv")
        return cache.commit((part, part), jnp.asarray([size, size - 1]))

    early = add(cache, 3)
    assert cache.loses(7) == (False, False) and cache.loses(8) == (True, False)
    mark = early.mark(early.loses(40))
    late = add(early.grow(40), 20)
    assert late.cut(early.length).length.tolist() == [0, 0]
    back = late.back(mark, jnp.asarray([True, False]), 40)
    assert back.length.tolist() == [3, 21] and back.cut(early.length).length.tolist() == [3, 0]
    want = early.grow(40).stale()
    for ours, theirs in zip(*map(jax.tree.leaves, (back.stale().layers, want.layers))):
        np.testing.assert_array_equal(ours[0], theirs[0])


def test_a_ring_that_has_not_slid_can_be_cut() -> None:
    ring = Cache((Ring.empty(2, 64, 1, 4, jnp.float32, window=9),), jnp.asarray([8, 9]))
    cut = ring.cut(jnp.asarray([5, 5]))
    assert cut.length.tolist() == [5, 0]  # of the second one position 0 was overwritten
    assert ring.cut(jnp.asarray([9, 9])).length.tolist() == [8, 9]  # as many as there are


def test_one_memory_serves_one_text_at_a_time() -> None:
    target, memory = tiny.model(), specjax.Memory()
    how = {"max_new_tokens": 12, "memory": memory}
    first = specjax.stream(target, "ngram:3", [[1, 2]], cycles_per_call=1, **how)
    begun = next(first)
    again = specjax.generate(target, "ngram:3", [[1, 2, *begun.tokens, 9, 9]], **how)
    assert memory.kept[0] > 0
    fresh = specjax.generate(target, "ngram:3", [again.prompt_tokens[0]], max_new_tokens=12)
    assert again.tokens == fresh.tokens
    with pytest.raises(ValueError, match="Another call has gone on with this memory"):
        next(first)
    with pytest.raises(ValueError, match="memory is a dict"):
        specjax.generate(target, None, [[1]], memory={})  # type: ignore[arg-type]


def test_a_drafter_that_cannot_be_cut_begins_anew() -> None:
    target, spec = tiny.model(), Uncut(K)
    session = Session(target, spec, requests([[1, 2, 3]], 9))
    session.advance()
    before, text = session.state, [1, 2, 3, *session.new_tokens()[0]]
    assert not session.turn(requests([[*text, 5]], 9)) and session.state is before
    memory = specjax.Memory()
    for prompt in ([1, 2, 3], [*text, 5]):
        out = specjax.generate(target, spec, [prompt], max_new_tokens=9, memory=memory)
        assert memory.kept == [0] and len(out.tokens[0]) == 9


@pytree
class Uncut(NGram):
    """Prompt lookup that counts what it has heard, and has no ``cut``."""

    def init(self, rows: int, slots: int) -> jax.Array:
        return jnp.zeros((rows,), jnp.int32)

    def prefill(self, draft: Any, tokens: Any, count: Any, features: Any) -> Any:
        return draft + count

    def update(self, held: Any, kept: Any) -> Any:
        return held + kept.count


def test_a_turn_behind_a_stop_string_streams_what_a_fresh_one_would(tmp_path: Path) -> None:
    """Behind the string the device may have decoded more, which is no part of the next prompt."""
    target = specjax.load(write_tiny(tmp_path / "target"))
    memory, text = specjax.Memory(), "abc"
    plain = specjax.generate(target, None, text, max_new_tokens=40, temperature=1.0).text[0]
    stop = plain[5:7]
    for turn in range(2):
        how = {"max_new_tokens": 40, "temperature": 1.0, "stop": stop, "cycles_per_call": 3}
        fresh = list(specjax.stream(target, "ngram:3", text, **how))
        told = list(specjax.stream(target, "ngram:3", text, memory=memory, **how))
        said = "".join(p.text for p in told)
        assert said == "".join(p.text for p in fresh) and told[-1].finish == fresh[-1].finish
        assert [p.tokens for p in told] == [p.tokens for p in fresh]
        if turn == 0:
            assert said == plain[: plain.index(stop)] and told[-1].finish == "stop"
        text += said + "de"
    assert memory.kept[0] > 0
