"""A state grows a layer at a time, and what does not fit is refused before."""

from __future__ import annotations

from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
import tiny
import tiny_families

from specjax.core.compiles import Compiles
from specjax.drafters import LM, NGram
from specjax.sampling import Options
from specjax.session import Row, Session, between, limits


def session(target: Any, spec: Any) -> Session:
    rows = [Row(p, Options(), 0, 400, ()) for p in ([1, 2, 3], [4, 5])]
    s = Session(target, spec, rows, chunk=16)
    s.advance(1)
    return s


def size(tree: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def test_growing_takes_no_more_than_one_layer_beside_both_states() -> None:
    """By the arrays that are alive whenever a part has grown; the estimate is that peak."""
    target = tiny.model(layers=4)
    s = session(target, LM(tiny.near(target), 3))
    want = between.grown_program(s.drafter, s.state, slots=512)
    want = jax.tree.map(np.asarray, want)
    old, largest = size(s.state), max(size(e) for e in s.state.cache.layers)
    others = sum(x.nbytes for x in jax.live_arrays()) - old
    peaks = []

    def ready(new: Any) -> Any:
        peaks.append(sum(x.nbytes for x in jax.live_arrays() if not x.is_deleted()) - others)
        return wait(new)

    compiles, wait = Compiles(), jax.block_until_ready
    with mock.patch.object(jax, "block_until_ready", ready):
        grown = between.grow(s.drafter, s.state, slots=512)
    assert compiles.count <= 3  # layers of one shape share a program: the target's, the draft's
    new, rest = size(grown), size((s.state.tokens, s.state.record))
    assert len(peaks) == 9 and old < max(peaks) <= new + max(largest, rest)
    assert max(peaks) < 0.8 * (old + new)
    estimate = limits._needed(target, s.drafter, 2, slots=512)
    assert 0 <= estimate - limits._laws(target, 2, 4) - max(peaks) <= largest
    jax.tree.map(np.testing.assert_array_equal, grown, want)
    assert all(x.is_deleted() for x in jax.tree.leaves(s.state.cache.layers))
    s.state = grown
    s.advance(1)
    compiles = Compiles()
    s.advance(1)
    assert compiles.count == 0


def test_what_a_state_needs_is_asked_of_its_entries(monkeypatch: Any) -> None:
    s = session(tiny_families.model("mixed"), NGram(3))
    needed = limits._needed(s.target, s.drafter, 2, slots=256)
    assert needed == size(s.state) + limits._laws(s.target, 2, 4)
    marked = limits._needed(s.target, s.drafter, 2, slots=256, marked=True)
    recurrent, ring = s.state.cache.layers[:2]  # what a memory has twice
    assert marked - needed == size((recurrent, ring))
    # A window does not grow with the text, nor does a recurrent state: only what is beside it.
    beside, text = NGram(3), 2**17
    layers = {}
    for kind in ("full", "ring", "recurrent"):
        target = tiny_families.model(kind)
        layers[kind] = limits._needed(target, beside, 1, slots=text)
        monkeypatch.setattr(limits, "free_memory", lambda mesh, kind=kind: layers[kind] - 1)
        with pytest.raises(ValueError, match="1 rows of up to 131072 tokens"):
            limits.check_memory(target, beside, [100_000])
        limits.check_memory(target, beside, [100_000], held=1)  # the old state's place is free
        limits.check_memory(target, beside, [50_000])
    plain = 1.5 * 4 * text * (1 + 3 + 2)  # tokens and trace, while they grow
    for kind in ("ring", "recurrent"):
        assert plain < layers[kind] < 1.01 * plain < layers["full"] / 4
