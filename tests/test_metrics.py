"""Metrics against slow definitions in plain Python, on random traces; intervals; AIPerf's names."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specjax.lab.bench import aiperf
from specjax.lab.records.codec import to_json
from specjax.trace import bootstrap, metrics
from specjax.trace.trace import Cycle, Detail, Text, Trace

MOST, BATCH = 4, 3
SETUP = {"num_draft": MOST, "batch": BATCH, "kind": "sampled", "rule": "token"}


def random_trace(seed: int, rows: int = 7, *, ragged: bool = True, cut: bool = True) -> Trace:
    """Batches of 3 rows on one clock each; ragged k, cut ends, and a row without cycles."""
    rng = np.random.default_rng(seed)
    found, texts = [], []
    for b in range(rows):
        if b % BATCH == 0:
            prefilled = float(rng.uniform(0.1, 0.3))
            marks = prefilled + 0.01 + np.cumsum(rng.uniform(0.01, 0.05, 60))
        num = 0 if ragged and b == 1 else int(rng.integers(1, 12))
        prompt, row, length = tuple(rng.integers(0, 9, 1 + b).tolist()), [], 1 + b
        for j in range(num):
            k = int(rng.integers(0, MOST + 1)) if ragged else MOST
            accepted = int(rng.integers(0, k + 1))
            count = accepted + 1
            if cut and j == num - 1:
                count = int(rng.integers(1, accepted + 2))
            emitted = tuple(rng.integers(0, 9, count).tolist())
            p, q = rng.uniform(0, 1, k), rng.uniform(0.01, 1, k)
            detail = Detail(tuple(p), tuple(q), (1,) * k, (0.5,) * count)
            guesses = tuple(rng.integers(0, 9, k).tolist())
            times = {"begin": float(marks[j]), "end": float(marks[j + 1])}
            row.append(Cycle(length, guesses, accepted, count, emitted, detail, **times))
            length += count
        found.append(tuple(row))
        text = Text(prompt, finish="stop" if cut else "length", category="ab"[b % 2])
        texts.append(dataclasses.replace(text, prefilled=prefilled))
    return Trace(tuple(found), tuple(texts), dict(SETUP))


def share(above: float, below: float) -> float | None:
    return above / below if below else None


def slow_figures(trace: Trace) -> dict[str, Any]:
    """Every metric by its definition, one loop each; nothing of the package but the records."""
    cycles = [c for row in trace.rows for c in row]
    n = a = k = rejected = 0
    histogram: dict[str, int] = {}
    for c in cycles:
        n, a, k = n + c.committed, a + c.accepted, k + len(c.proposed)
        rejected += 1 if c.accepted != len(c.proposed) else 0
    for value in range(MOST + 1):
        times = len([c for c in cycles if c.accepted == value])
        if times:
            histogram[str(value)] = times
    longest = max([len(c.proposed) for c in cycles], default=0)
    survival, conditional = [], []
    for i in range(1, longest + 1):
        had = [c for c in cycles if len(c.proposed) >= i]
        survival.append(share(len([c for c in had if c.accepted >= i]), len(had)))
        came = [c for c in had if c.accepted >= i - 1]
        conditional.append(share(len([c for c in came if c.accepted >= i]), len(came)))
    taus = [sum(c.committed for c in row) / len(row) for row in trace.rows if row]
    over = under = 0.0
    for c in cycles:
        assert c.detail is not None
        for i in range(len(c.proposed)):
            reach = math.prod(min(1.0, c.detail.p[j] / c.detail.q[j]) for j in range(i))
            over += reach * min(1.0, c.detail.p[i] / c.detail.q[i])
            under += reach
    fewest = [min(c.committed for c in group) for group in together(trace)]
    return {
        "tau": share(n, len(cycles)),
        "tau_macro": share(sum(taus), len(taus)),
        "tau_uncut": share(len(cycles) + a, len(cycles)),
        "tau_lockstep": share(sum(fewest), len(fewest)),
        "occupancy": share(len(cycles), trace.setup["batch"] * len(fewest)),
        "accept_rate": share(a, k),
        "survival": survival,
        "conditional": conditional,
        "alpha_hat": share(a, a + rejected),
        "alpha_model": share(over, under),
        "accept_hist": histogram,
        "waste": share(k - a, n),
        "verify_use": share(n, k + len(cycles)),
        "tokens": n,
        "cycles": len(cycles),
        "requests": len(trace.rows),
        "num_draft": MOST,
        **slow_times(trace),
    }


def together(trace: Trace) -> list[list[Cycle]]:
    """The cycles that the rows of one batch ran at the same time."""
    found: dict[tuple[int, int], list[Cycle]] = defaultdict(list)
    for b, row in enumerate(trace.rows):
        for j, c in enumerate(row):
            found[b // BATCH, j].append(c)
    return list(found.values())


def slow_times(trace: Trace) -> dict[str, Any]:
    """Those of the clock, with their quantiles."""
    steps = [1000 * (group[0].end - group[0].begin) for group in together(trace)]
    tpot, first, later, spent = [], [], [], 0.0
    for row, text in zip(trace.rows, trace.texts):
        if row:
            tokens, seconds = sum(c.committed for c in row), row[-1].end - text.prefilled
            tpot.append(1000 * seconds / tokens)
            spent += seconds
            first.append(1000 * row[0].end)
            if len(row) > 1:
                later.append((tokens - 1, row[-1].end - row[0].end))
    out = {
        "tps_decode": share(sum(t for t, _ in later), sum(s for _, s in later)),
        "tpot_ms": share(1000 * spent, sum(c.committed for row in trace.rows for c in row)),
        "step_ms": share(sum(steps), len(steps)),
        "ttft_ms": share(sum(first), len(first)),
    }
    for key, values in (("tpot_ms", tpot), ("step_ms", steps), ("ttft_ms", first)):
        for name, part in (("_p50", 0.5), ("_p95", 0.95)):
            ordered, at = sorted(values), part * (len(values) - 1)
            low, high = ordered[math.floor(at)], ordered[math.ceil(at)]
            out[key + name] = low + (high - low) * (at - math.floor(at))
    return out


def assert_same(ours: dict[str, Any], slow: dict[str, Any]) -> None:
    assert ours.keys() == slow.keys()
    for key, want in slow.items():
        if isinstance(want, float):
            assert ours[key] == pytest.approx(want, rel=1e-9), key
        elif isinstance(want, list):
            assert [x is None for x in ours[key]] == [x is None for x in want], key
            pairs = [(x, y) for x, y in zip(ours[key], want) if y is not None]
            assert all(x == pytest.approx(y, rel=1e-12) for x, y in pairs), key
        else:
            assert ours[key] == want, key


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ragged", [True, False])
def test_every_metric_is_its_definition(seed: int, ragged: bool) -> None:
    trace = random_trace(seed, ragged=ragged)
    found = to_json(metrics.figures(trace))
    assert_same(found, slow_figures(trace))
    assert found.keys() <= metrics.METRICS.keys()
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_each_request_and_each_category() -> None:
    trace = random_trace(1)
    for b in range(len(trace.rows)):
        one = metrics.select(trace, [b])
        alone = dataclasses.replace(one, setup={**one.setup, "batch": 1})
        assert alone == Trace((trace.rows[b],), (trace.texts[b],))
        found = vars(metrics.figures(alone))
        assert found["tau"] == found["tau_lockstep"]
        if trace.rows[b]:
            want = slow_figures(alone)
            assert_same({key: found[key] for key in want}, want)
        else:
            assert found["tau"] is None and found["tokens"] == 0 and found["tpot_ms"] is None
    groups = metrics.by_category(trace)
    assert list(groups) == ["a", "b"]
    assert sum(g.cycles for g in groups.values()) == trace.num_cycles
    assert groups["a"].tau_lockstep is None  # rows of one category are no batch


def test_identities() -> None:
    uncut = random_trace(3, ragged=False, cut=False)
    found = metrics.figures(uncut)
    assert found.tau == found.tau_uncut
    assert found.tau == pytest.approx(1 + sum(found.survival))
    assert np.cumprod(found.conditional) == pytest.approx(found.survival)
    assert list(found.survival) == uncut.survival() and found.tau == uncut.tau
    assert found.accept_rate == pytest.approx(sum(found.survival) / MOST)
    cut = metrics.figures(random_trace(3, ragged=False))
    assert cut.tau < cut.tau_uncut == pytest.approx(1 + sum(cut.survival))
    assert cut.tau_lockstep < cut.tau


def test_what_cannot_be_known_is_none() -> None:
    assert metrics.figures(Trace(())).tau is None
    bare = Trace(((Cycle(1, (), 0, 1, (5,)),),))
    found = metrics.figures(bare)
    assert found.tau == 1 and found.accept_rate is None and found.survival == ()
    for key in ("tpot_ms", "step_ms", "ttft_ms_p95", "tps_decode", "alpha_model", "tau_lockstep"):
        assert getattr(found, key) is None
    trace = random_trace(0)
    for other in ({"kind": "one_hot"}, {"kind": "coupled"}, {"rule": "greedy"}):
        assert metrics.figures(Trace(trace.rows, setup={**SETUP, **other})).alpha_model is None


def test_alpha_model_is_the_overlap_whatever_the_rule_counts() -> None:
    """Against sum_x min(p, q); also where a rule like block verification accepts more of a kind."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), 2)
    rows = []
    for _ in range(4000):
        guesses = rng.choice(5, MOST, p=q)
        detail = Detail(tuple(p[guesses]), tuple(q[guesses]), (1,) * MOST, (0.5,))
        lucky = int((p[guesses] > q[guesses]).sum())
        rows.append((Cycle(1, tuple(guesses.tolist()), lucky, 1, (0,), detail),))
    found = metrics.figures(Trace(tuple(rows), setup=SETUP)).alpha_model
    assert found == pytest.approx(np.minimum(p, q).sum(), abs=0.01)


def plain_of(trace: Trace, per_token: float) -> Trace:
    """Plain decoding that says the same, in ``per_token`` seconds a token."""
    rows = []
    for row, text in zip(trace.rows, trace.texts):
        tokens = [t for c in row for t in c.emitted]
        start, length = text.prefilled, len(text.prompt_tokens)
        rows.append(
            tuple(
                Cycle(
                    length + i,
                    (),
                    0,
                    1,
                    (token,),
                    begin=start + i * per_token,
                    end=start + (i + 1) * per_token,
                )
                for i, token in enumerate(tokens)
            )
        )
    return Trace(tuple(rows), trace.texts, {**trace.setup, "rule": "greedy", "kind": "one_hot"})


def test_compare() -> None:
    ours = random_trace(5, ragged=False)
    ours = Trace(ours.rows, ours.texts, {**SETUP, "rule": "greedy"})
    plain = plain_of(ours, 0.05)
    found = metrics.compare(ours, plain)
    times = [row[-1].end - text.prefilled for row, text in zip(ours.rows, ours.texts)]
    tokens = [sum(c.committed for c in row) for row in ours.rows]
    ratios = [0.05 * n / t for n, t in zip(tokens, times)]
    assert found.speedup == pytest.approx(0.05 * sum(tokens) / sum(times))
    tpot = [metrics.figures(t).tpot_ms for t in (plain, ours)]
    assert found.speedup == pytest.approx(tpot[0] / tpot[1])
    assert found.speedup_gmean == pytest.approx(math.prod(ratios) ** (1 / len(ratios)))
    for key in ("speedup", "speedup_gmean"):
        low, high = getattr(found, key + "_interval")
        assert min(ratios) - 1e-9 <= low < getattr(found, key) < high <= max(ratios) + 1e-9
    assert (found.exact_match, found.first_diff, found.same_lengths) == (1, None, True)
    assert found == metrics.compare(ours, plain) != metrics.compare(ours, plain, seed=1)

    wrong = list(plain.rows)
    wrong[2] = (dataclasses.replace(wrong[2][0], emitted=(77,)), *wrong[2][1:])
    differs = metrics.compare(ours, dataclasses.replace(plain, rows=tuple(wrong)))
    assert differs.exact_match == 6 / 7 and differs.first_diff == (2, 0)
    sampled = metrics.compare(Trace(ours.rows, ours.texts, SETUP), plain)
    assert sampled.exact_match is None and sampled.speedup == found.speedup


def test_compare_refuses_what_is_not_alike() -> None:
    ours = random_trace(5, ragged=False, cut=False)
    plain = plain_of(ours, 0.05)
    texts = list(plain.texts)
    texts[3] = dataclasses.replace(texts[3], prompt_tokens=(1, 2))
    shorter = (*plain.rows[:2], plain.rows[2][:-1], *plain.rows[3:])
    for other, why in (
        (ours, "holds guesses"),
        (dataclasses.replace(plain, rows=plain.rows[:3], texts=plain.texts[:3]), "7 requests"),
        (dataclasses.replace(plain, texts=()), "does not tell its prompts"),
        (dataclasses.replace(plain, texts=tuple(texts)), "Request 3 has another prompt"),
        (dataclasses.replace(plain, setup={**SETUP, "batch": 1}), "batch is 3 here and 1"),
        (dataclasses.replace(plain, rows=shorter), "Request 2 has .* past the limit"),
    ):
        with pytest.raises(ValueError, match=why) as error:
            metrics.compare(ours, other)
        assert "\n" not in str(error.value)


def test_intervals() -> None:
    trace = random_trace(2, rows=30)
    found = metrics.with_intervals(trace)
    whole = metrics.figures(trace)
    for key in ("tau", "accept_rate", "tpot_ms"):
        low, high = getattr(found, key)
        assert low < getattr(whole, key) < high
    assert all(low <= s <= high for (low, high), s in zip(found.survival, whole.survival))
    assert found == metrics.with_intervals(trace) != metrics.with_intervals(trace, seed=1)
    one = metrics.with_intervals(Trace(trace.rows[:1], trace.texts[:1], SETUP))
    assert one.tau is None
    constant = Trace(tuple((Cycle(1, (1, 2), 1, 2, (1, 5)),) * n for n in (1, 4, 9)))
    same = metrics.with_intervals(constant)
    assert same.tau == (2, 2) and same.survival == ((1, 1), (0, 0))
    assert same.accept_rate == (0.5, 0.5) and same.tpot_ms is None
    with pytest.raises(ValueError, match="resamples=0"):
        metrics.with_intervals(trace, resamples=0)


def test_resampling_is_drawing_rows() -> None:
    """The matrix product against rows drawn one by one: mean and spread of the ratio agree."""
    rng = np.random.default_rng(3)
    above, below = rng.uniform(1, 3, (2, 40))
    drawn = bootstrap.resample(np.stack([above, below], 1), resamples=4000, seed=0)
    fast = drawn[:, 0] / drawn[:, 1]
    slow = []
    for _ in range(4000):
        rows = rng.integers(0, 40, 40)
        slow.append(above[rows].sum() / below[rows].sum())
    assert fast.mean() == pytest.approx(np.mean(slow), abs=0.01)
    assert fast.std() == pytest.approx(np.std(slow), rel=0.08)


def test_coverage() -> None:
    """The 95 % interval of a ratio of means holds the true one in nearly 95 of 100 experiments."""
    rng = np.random.default_rng(7)
    hits = 0
    for seed in range(300):
        below = rng.integers(1, 20, 60).astype(float)
        above = below * rng.gamma(4.0, 0.5, 60)  # each request has a rate of its own; mean 2
        [found] = bootstrap.ratio_intervals(
            above[:, None], below[:, None], resamples=400, seed=seed
        )
        assert found is not None
        hits += found[0] <= 2.0 <= found[1]
    assert 0.90 <= hits / 300 <= 0.98


def test_intervals_are_fast() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(1, 2, (500, 12))
    begin = time.process_time()
    bootstrap.ratio_intervals(values, values + 1, resamples=1000, seed=0)
    assert time.process_time() - begin < 1.0


def test_aiperf_records(tmp_path: Path) -> None:
    trace = random_trace(4)
    aiperf.save(trace, tmp_path / "records.jsonl")
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert len(records) == len(trace.rows)
    for record, row in zip(records, trace.rows):
        steps = [c for c in row if c.proposed]
        histogram = {int(a): n for a, n in record["acceptance_histogram"].items()}
        # What AIPerf's own validator asks for.
        assert sum(histogram.values()) == record["num_spec_steps"] == len(steps)
        accepted = sum(a * n for a, n in histogram.items())
        assert accepted == record["num_accepted_draft_tokens"] <= record["num_draft_tokens"]
        assert sum(record["per_step_accepted"]) == accepted
        assert sum(record["per_step_drafted"]) == record["num_draft_tokens"]
        assert record["completion_tokens"] == sum(c.committed for c in row)
        if steps:
            want = 1 + accepted / len(steps)
            assert record["mean_acceptance_length"] == pytest.approx(want)
            assert record["draft_acceptance_rate"] == accepted / record["num_draft_tokens"]
    # A request without steps, as vLLM reports it.
    assert records[1]["mean_acceptance_length"] == 1 and records[1]["draft_acceptance_rate"] == 0
    fixed = random_trace(4, ragged=False)
    total, found = aiperf.summary(fixed), metrics.figures(fixed)
    length = total["spec_decode_token_weighted_acceptance_length"]
    assert length == pytest.approx(found.tau_uncut)
    rate = total["spec_decode_overall_draft_acceptance_rate"]
    assert rate == pytest.approx(100 * found.accept_rate)
    assert total["pooled_spec_decode_acceptance_histogram"] == found.accept_hist
    assert aiperf.summary(Trace(()))["spec_decode_acceptance_length"] is None
