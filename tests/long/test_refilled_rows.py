"""Many random queues: each request's text and cycles are those that it has alone.

python -m pytest -n 0 tests/long/test_refilled_rows.py
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import test_refill
import tiny

from specjax import session
from specjax.core.compiles import Compiles
from specjax.drafters import DRAFTERS
from specjax.session import refill, warming
from specjax.session.refill import Refill

QUEUES = 6  # of each drafter


@pytest.mark.parametrize("name", DRAFTERS)
def test_random_queues(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches, chunks, limits, stops, options, texts that the host ends; what is free is poison."""
    target = tiny.model()
    spec = tiny.make(name, 3, target=target, model=tiny.near(target) if name == "lm" else None)
    free = refill.free_program
    for place in (refill, warming):
        monkeypatch.setattr(
            place, "free_program", lambda *args: test_refill.poison(free(*args), args[1])
        )
    rng = np.random.default_rng(len(name))
    for queue in range(QUEUES):
        rows = test_refill.requests(int(rng.integers(10, 40)), queue, longest=120)
        rows = [dataclasses.replace(r, seed=int(rng.integers(1 << 31))) for r in rows]
        size, chunk = int(rng.choice([1, 2, 5, 8, 16])), int(rng.choice([16, 48, 256]))
        ahead = [None, 2 * size][queue % 2]
        ends = {i: int(rng.integers(1, 20)) for i in range(0, len(rows), 4)}  # found by the host
        over = lambda i, tokens, ends=ends: len(tokens) >= ends.get(i, 1 << 20)
        how: dict[str, Any] = {"batch_size": size, "rule": "coupled", "chunk": chunk}
        how |= {"ahead": ahead, "over": over if queue % 3 == 0 else None}
        warming.warm_up(Refill(target, spec, rows, **how))
        compiles = Compiles()
        got = {f.index: f for f in Refill(target, spec, rows, **how)}
        assert compiles.count == 0 and len(got) == len(rows)
        for i, row in enumerate(rows):
            alone = session.Session(target, spec, [row], rule="coupled", chunk=chunk)
            alone.advance()
            tokens, num = alone.new_tokens()[0], len(got[i].tokens)
            if how["over"] is None or i not in ends:
                assert num == len(tokens)
            assert got[i].tokens == tokens[:num], (queue, i)
            want = test_refill.facts(alone.trace().cut(0, num))
            assert test_refill.facts(got[i].trace) == want, (queue, i)
