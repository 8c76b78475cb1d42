"""How many experts a pass reads: counted in a replay, and what predictions make of it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import specjax
from specjax.checkpoint.load import Model
from specjax.drafters import LM, NGram
from specjax.lab.costs import account
from specjax.lab.costs.calibration import calibrate, with_reads
from specjax.lab.costs.experts import _chosen, _hits, count, has_experts
from specjax.lab.costs.predicted import predict_case
from specjax.lab.records.costs import Costs
from specjax.lab.records.experts import Reads
from specjax.trace.metrics import figures

LENGTH = 64


@functools.cache
def target() -> Model:
    return tiny.model("qwen3_moe")


def by_hand(trace: specjax.Trace, width: int) -> list[float]:
    """[width] means over passes and layers: every block behind its whole text, without a cache."""
    hits: dict[Any, list[np.ndarray]] = {}
    texts = [[*t.prompt_tokens] for t in trace.texts]
    for text, row in zip(texts, trace.rows, strict=True):
        for j, cycle in enumerate(row):
            block = [*text, *cycle.proposed] + [0] * (width - 1 - len(cycle.proposed))
            tokens = jnp.asarray([block + [0] * (LENGTH - len(block))], jnp.int32)
            hit = _hits(np.asarray(_chosen(target().net, tokens)), 6)[:, 0]
            together = cycle.begin if trace.about.in_turn else j
            hits.setdefault(together, []).append(hit[:, len(text) - 1 : len(block)])
            text += cycle.emitted
    found = []
    for some in hits.values():
        either = np.logical_or.accumulate(np.stack(some), axis=2).any(0)  # [L, width, E]
        found.append(either.sum(-1).mean(0))
    return np.mean(found, axis=0).tolist()


@pytest.mark.parametrize("name", ["ngram", "lm", "medusa_tree"])
def test_a_replay_counts_what_passes_without_a_cache_go_to(name: str) -> None:
    """Wrong guesses, places without one and rows that end early included."""
    made = LM(tiny.near(target()), 3) if name == "lm" else tiny.make(name, 3, target=target())
    trace = specjax.generate(target(), made, tiny.prompts(3), max_new_tokens=[9, 14, 11]).trace
    union = count(target(), trace)
    assert (union.num, union.chosen) == (6, 2) and len(union.distinct) == 4
    assert 2 <= union.distinct[0] < union.distinct[-1] < union.expected[-1] < 6
    if name == "medusa_tree":  # a place's ancestors are not those before it
        assert trace.about.parents is not None and count(target(), trace) == union
    else:
        np.testing.assert_allclose(union.distinct, by_hand(trace, 4), rtol=1e-12)
    if name == "ngram":  # in two rows that change hands
        how: dict[str, Any] = {"max_new_tokens": [9, 14, 11], "batch_size": 2}
        turns = specjax.generate(target(), made, tiny.prompts(3), **how).trace
        assert turns.rows == trace.rows
        both = count(target(), turns)
        np.testing.assert_allclose(both.distinct, by_hand(turns, 4), rtol=1e-12)
        assert both.distinct[-1] < union.distinct[-1]  # of fewer rows a pass


def costs(reads: Reads | None) -> Costs:
    return Costs(
        batch=1,
        context=256,
        plain_s=0.01,
        verify={1: 1.2, 3: 2.0},
        draft={1: 0.1, 3: 0.3},
        draft_calls={1: 1, 3: 3},
        cycle={1: 1.4, 3: 2.5},
        rest=0.15,
        reads=reads,
    )


def test_a_pass_costs_what_it_reads() -> None:
    """Twice the bytes, twice the time of that pass, and of nothing else."""
    reads = Reads(others=10.0, each=5.0, distinct={0: 2.0, 1: 4.0, 3: 6.0})
    known = costs(reads)
    assert known.reading(None) is known and known.reading({0: 2.0, 1: 4.0, 3: 6.0}) == known
    more = known.reading({0: 2.0, 3: 14.0})  # 40 bytes to 80
    assert (more.verify, more.draft, more.plain_s) == ({1: 1.2, 3: 4.0}, known.draft, 0.01)
    assert more.total(3) == pytest.approx(known.total(3) + 2.0)
    assert more.rest_at(3) == pytest.approx(known.rest_at(3))
    dear = known.reading({0: 6.0})  # a plain step of 40 bytes instead of 20
    assert dear.plain_s == 0.02 and dear.total(3) == pytest.approx(known.total(3) / 2)
    dense = costs(None)
    assert dense.reading({0: 9.0, 3: 9.0}) is dense
    # Whole cycles that read more than verification alone did are taken back to that.
    whole = with_reads(costs(None), (reads, {1: 4.0, 3: 8.0}))
    assert whole.cycle == {1: 1.4, 3: pytest.approx(2.5 - 2.0 * 10 / 40)}


def test_costs_of_a_mixture_say_what_they_read_and_predictions_use_it() -> None:
    known = calibrate(target(), NGram(3), ks=(3,), repeats=1, cycles=2)
    reads = known.costs[0].reads
    assert reads is not None and reads.distinct[0] == 2 < reads.distinct[3] <= 6
    net = target().net
    assert reads.bytes(2) == pytest.approx(account.weight_bytes(net), rel=1e-3)
    assert reads.bytes(6) == pytest.approx(account.weight_bytes(net, tokens=1000), rel=1e-3)
    trace = specjax.generate(target(), NGram(3), tiny.prompts(2)[1], max_new_tokens=12).trace
    union = count(target(), trace)
    told = predict_case(figures(trace), known.costs[0], 3, None, union)
    assert told.cost_verify == known.costs[0].verify[3] * reads.ratio(3, union.distinct[-1])
    without = dataclasses.replace(known.costs[0], reads=None)
    assert predict_case(figures(trace), without, 3, None, union).cost_verify == without.verify[3]


def test_a_dense_target_has_no_experts_to_count() -> None:
    dense = tiny.model("qwen3_5")
    assert not has_experts(dense) and not has_experts(tiny.model("qwen3"))
    assert has_experts(tiny.model("qwen3_5_moe"))
    with pytest.raises(ValueError, match="has no experts"):
        count(dense, specjax.generate(dense, None, [1, 2], max_new_tokens=2).trace)
