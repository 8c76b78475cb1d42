"""The cost model, calibration's arithmetic, and explanations of cases whose answer is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import specjax
from specjax import drafters
from specjax.core import machine
from specjax.core.cache import caches_in
from specjax.lab.costs import calibration, rounds
from specjax.lab.costs.calibration import calibrate, timed
from specjax.lab.costs.cost_model import (
    geometric_tau,
    hold_last_conditional,
    predict,
    survival_of,
)
from specjax.lab.costs.explain import explain
from specjax.lab.costs.programs import PROMPT_TOKENS, CycleProgram, begins_at
from specjax.lab.records import costs as kept
from specjax.lab.records.costs import Calibration, Costs, costs_at
from specjax.lab.records.run import Target
from specjax.trace.metrics import Figures

KS = (1, 2, 4, 8)


def costs(**changes: Any) -> Costs:
    """A cheap serial draft on a machine where verification is free."""
    base: dict[str, Any] = {
        "batch": 1,
        "context": 256,
        "plain_s": 0.01,
        "verify": dict.fromkeys(KS, 1.0),
        "draft": {k: 0.05 * k for k in KS},
        "draft_calls": {k: k for k in KS},
    }
    return Costs(**base | changes)


def geometric_best_k(alpha: float, c: float, v: float = 1.0) -> float:
    """The k, a real number, with the largest (1 - alpha^(k+1)) / ((1 - alpha) (k c + v)).

    The derivative vanishes at k + 1 = (A + W(-exp(-A))) / ln(alpha), A = 1 + (v/c - 1) |ln alpha|,
    W the lower branch of Lambert's function. With u = -W that is u - ln(u) = A, and k + 1 =
    ln(u) / |ln alpha|, which neither overflows nor underflows.

    Args:
      alpha: between 0 and 1, both excluded.
      c: cost of a draft pass, in plain steps, above 0.
      v: cost of verifying, in plain steps, the same for every k.

    Returns:
      At least 0; 0 where the first guess does not pay.

    Raises:
      ValueError: on arguments outside of that.
    """
    if not 0 < alpha < 1 or not 0 < c < math.inf or not 0 < v < math.inf:
        raise ValueError(f"alpha={alpha!r}, c={c!r}, v={v!r}: need 0 < alpha < 1, c > 0, v > 0.")
    rate = -math.log(alpha)
    a = 1 + (v / c - 1) * rate
    if a <= 1:
        return 0.0
    u = a + 2 * math.log(a) + 2  # above the solution, from where Newton falls monotonically
    for _ in range(100):
        step = (u - math.log(u) - a) / (1 - 1 / u)
        u -= step
        if abs(step) <= 1e-14 * u:
            break
    return max(math.log(u) / rate - 1, 0.0)


def test_the_closed_form_is_the_best_k_of_a_scan() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        alpha, c, v = rng.uniform(0.05, 0.98), 10 ** rng.uniform(-3, 0), rng.uniform(0.8, 3)

        def speed(k: float, alpha: float = alpha, c: float = c, v: float = v) -> float:
            return (1 - alpha ** (k + 1)) / ((1 - alpha) * (k * c + v))

        found = geometric_best_k(alpha, c, v)
        grid = np.linspace(max(found - 1, 0), found + 1, 2001)
        assert speed(found) >= max(speed(k) for k in grid) * (1 - 1e-9)
        scanned = max(range(400), key=speed)
        assert abs(scanned - found) < 1, (alpha, c, v)
        # Some k gives a win iff the first guess does (v the same for all).
        assert (found > 0) == (speed(1e-6) > speed(0.0))
    with pytest.raises(ValueError, match="0 < alpha < 1"):
        geometric_best_k(1.0, 0.1)


def test_a_geometric_curve_is_predicted_as_the_formula_says() -> None:
    alpha, machine = 0.8, costs(rest=0.1)
    found = predict([alpha**i for i in range(1, 9)], machine)
    assert found.ks == tuple(range(1, 9))
    assert found.speedup == pytest.approx(found.single_alpha_speedup)
    for k, speedup in zip(found.ks, found.speedup):
        assert speedup == pytest.approx(geometric_tau(alpha, k) / (0.05 * k + 1.1))
    assert found.best_k == found.single_alpha_best_k == round(geometric_best_k(alpha, 0.05, 1.1))
    assert found.tokens_per_s[0] == pytest.approx(found.speedup[0] / 0.01)


def test_identities() -> None:
    assert predict([0.9, 0.5], costs(), [0]).speedup == (1.0,)  # plain decoding
    free = costs(draft=dict.fromkeys(KS, 0.0))
    assert predict([1.0] * 8, free).speedup == pytest.approx([k + 1 for k in range(1, 9)])
    assert geometric_tau(1.0, 3) == 4
    slow = predict([0.1] * 8, costs(draft={k: 0.5 * k for k in KS}))
    assert (slow.best_k, slow.best_speedup) == (0, 1.0)
    # A falling conditional: the single alpha, from the first guess, promises too much.
    falling = predict([0.8, 0.4, 0.1, 0.0], costs())
    assert falling.alpha == 0.8
    assert falling.best_k < falling.single_alpha_best_k
    assert predict([0.8, 0.4], costs(), alpha=0.5).single_alpha_speedup[1] == pytest.approx(
        1.75 / 1.1
    )
    # Every cycle counts, those without a guess as well.
    curve = survival_of({"0": 5, "2": 3, "3": 2}, 4)
    assert curve == pytest.approx([0.5, 0.5, 0.2, 0.0])
    assert 1 + sum(curve) == pytest.approx(1 + (3 * 2 + 2 * 3) / 10)
    assert costs().c == pytest.approx(0.05)
    assert costs(draft_calls=dict.fromkeys(KS, 1)).c == pytest.approx(0.4)


def test_nothing_is_extrapolated_silently() -> None:
    machine = costs()
    with pytest.raises(ValueError, match=r"k=3, but survival is known for 2.*hold_last"):
        predict([0.8, 0.6], machine, [3])
    assert hold_last_conditional([0.8, 0.4], 4) == pytest.approx([0.8, 0.4, 0.2, 0.1])
    assert hold_last_conditional([0.0], 2) == [0.0, 0.0]
    with pytest.raises(ValueError, match=r"k = 1 to 8, not 9"):
        predict([0.9] * 9, machine, [9])
    assert costs(verify={1: 1.0, 2: 1.5, 4: 2.0, 8: 4.0}).verify_at(3) == pytest.approx(1.75)
    with pytest.raises(ValueError, match="not 1"):
        costs(draft={4: 0.2, 8: 0.4}).draft_at(1)  # below the smallest is no measurement either
    for bad in ([0.5, 0.6], [1.2], [-0.1], [math.nan]):
        with pytest.raises(ValueError, match="survival"):
            predict(bad, machine, [1])
    with pytest.raises(ValueError, match="accept_hist"):
        survival_of({"5": 1}, 4)
    with pytest.raises(ValueError, match="plain_s"):
        costs(plain_s=0.0)
    with pytest.raises(ValueError, match=r"verify\[2\]"):
        costs(verify={2: math.nan})


def test_costs_between_batches_and_contexts_are_linear_in_seconds() -> None:
    def cell(batch: int, context: int) -> Costs:
        plain = 0.01 * batch + 1e-5 * context
        verify = {k: (plain + 0.002 * batch * k) / plain for k in KS}
        return costs(batch=batch, context=context, plain_s=plain, verify=verify)

    cells = [cell(b, s) for b in (1, 8) for s in (256, 1024)]
    found, truth = costs_at(cells, batch=4, context=512), cell(4, 512)
    assert found.plain_s == pytest.approx(truth.plain_s)
    assert found.verify == pytest.approx(truth.verify)
    assert costs_at(cells, batch=8, context=256) is cells[2]
    with pytest.raises(ValueError, match=r"batch = 1, 8, and 16 lies outside"):
        costs_at(cells, batch=16, context=256)
    with pytest.raises(ValueError, match="2 settings"):
        costs_at([cells[0], dataclasses.replace(cells[1], drafter="other")], batch=1, context=256)


class Machine:
    """Work with known costs on a machine whose clock drifts; a reading takes a whole interval."""

    def __init__(self, drift: float, *, rest: float = 0.2):
        self.now, self.drift, self.readings, self.rest = 1.0, drift, 0, rest

    def work(self, seconds: float) -> Callable[[], float]:
        def run() -> float:
            self.readings += 1
            self.now *= 1 + self.drift
            return seconds * self.now

        return run

    def timers(self, k: int) -> rounds.Timers:
        draft, verify = 0.05 * k, 1 + 0.1 * k
        return rounds.Timers(
            plain=self.work(0.01),
            verify=self.work(0.01 * verify),
            draft=self.work(0.01 * draft),
            cycle=self.work(0.01 * (draft + verify + self.rest)),
        )


@pytest.mark.parametrize("drift", [0.0, 0.002])
def test_rounds_find_known_costs_on_a_machine_that_drifts(drift: float) -> None:
    machine = Machine(drift)
    timers = {k: machine.timers(k) for k in KS}
    samples: dict[int, list[rounds.Sample]] = {k: [] for k in KS}
    for i in range(6):
        for k in KS:
            samples[k].append(rounds.take(timers[k], reverse=i % 2 == 1))
    found = rounds.summarise(samples, batch=2, context=256, draft_calls={k: k for k in KS})
    assert machine.readings == 6 * len(KS) * 5
    tolerance = 1e-9 if drift == 0 else 5e-3  # over the run the machine becomes 27 % slower
    for k in KS:
        assert found.verify[k] == pytest.approx(1 + 0.1 * k, rel=tolerance)
        assert found.draft[k] == pytest.approx(0.05 * k, rel=tolerance)
        assert found.additivity[k] == pytest.approx(1, rel=tolerance)
        assert found.total(k) == pytest.approx(0.05 * k + 1 + 0.1 * k + 0.2, rel=tolerance)
    assert found.rest == pytest.approx(0.2, abs=10 * tolerance)
    with pytest.raises(ValueError, match="No samples"):
        rounds.summarise({1: []}, batch=1, context=256, draft_calls={})


def test_a_rest_of_its_own_for_each_k() -> None:
    machine = costs(cycle={1: 1.2, 2: 1.5, 4: 1.8, 8: 2.4}, rest=0.3)
    assert machine.total(1) == 1.2
    assert machine.rest_at(2) == pytest.approx(0.4)
    assert machine.total(3) == pytest.approx(1.65)
    assert machine.additivity[1] == pytest.approx((0.05 + 1 + 0.3) / 1.2)


def test_calibrate_measures_real_cycles(tmp_path: Path) -> None:
    said: list[tuple[float, str]] = []
    found = specjax.measure.calibrate(
        tiny.model(layers=1),
        tiny.make("lm"),
        ks=[2],
        batches=(2,),
        repeats=2,
        cycles=4,
        progress=lambda share, what: said.append((share, what)),
    )
    (cell,) = found.costs
    assert (cell.batch, cell.context, cell.drafter, cell.rule) == (2, 256, "lm", "greedy")
    assert cell.draft_calls == {2: 2} and cell.ks == (2,)
    assert min(cell.plain_s, *cell.verify.values(), *cell.draft.values()) > 0
    shares = [share for share, _ in said]
    assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] < 1
    found.save(tmp_path / "costs.json")
    assert kept.load(tmp_path / "costs.json") == found
    assert found.at(batch=2, context=200) == cell
    with pytest.raises(ValueError, match="those measured"):
        found.at(drafter="dflash")
    with pytest.raises(ValueError, match="lies outside"):
        found.at(batch=4)
    both = found.join(dataclasses.replace(found, costs=(dataclasses.replace(cell, drafter="x"),)))
    assert both.at(batch=2, drafter="x").drafter == "x"


def test_sampled_guesses_and_taps_are_measured_too() -> None:
    target = tiny.model(layers=1)
    spec = tiny.make("medusa", 2, target=target)
    (cell,) = calibrate(target, spec, ks=[2], repeats=1, cycles=2, temperature=1.0).costs
    assert (cell.rule, cell.temperature, cell.draft_calls) == ("block", 1.0, {2: 1})
    (cell,) = calibrate(target, None, ks=[1], repeats=1, cycles=2).costs
    assert (cell.drafter, cell.draft, cell.rest, cell.c) == ("", {1: 0.0}, 0.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": drafters.NoDraft()}, "pass None"),
        ({"ks": [0]}, "ks = \\[0\\]"),
        ({"ks": []}, "at least one"),
        ({"ks": [300]}, "k=300 does not fit into 256 slots"),
        ({"batches": (0,)}, "batches"),
        ({"contexts": (5000,)}, "limited to 2048"),
        ({"rule": "magic"}, "magic"),
        ({"spec": None, "rule": "magic"}, "magic"),
        ({"spec": drafters.LM(tiny.draft(), 2, min_confidence=0.5)}, "no one cost"),
    ],
)
def test_bad_calibrations_are_refused_before_anything_is_timed(
    changes: dict[str, Any], message: str
) -> None:
    asked = {"spec": tiny.make("ngram"), "ks": [2]} | changes
    spec = asked.pop("spec")
    with pytest.raises(ValueError, match=message):
        calibrate(tiny.model(), spec, **asked)


def test_a_block_bounds_k() -> None:
    spec = tiny.make("medusa", 3)
    assert calibration.choose_ks(tiny.model(), spec, None) == (1, 2, 3)
    with pytest.raises(ValueError, match="3 heads"):
        calibrate(tiny.model(), spec, ks=[4])


def test_damaged_costs_and_other_machines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    with pytest.raises(ValueError, match="no such file"):
        kept.load(path)
    here = dataclasses.replace(machine.Machine.here(), cores=999)
    Calibration(here, Target("t"), (costs(),)).save(path)
    with pytest.raises(ValueError, match=r"another machine \(cores 999"):
        kept.load(path)
    assert kept.load(path, elsewhere=True).at().verify_at(3) == 1.0
    whole = path.read_text()
    for damage, message in (
        (whole[: len(whole) // 2], "cannot be read"),
        ("{}", "holds no costs"),
        (whole.replace('"version": 1', '"version": 9'), "version 9"),
        (whole.replace('"plain_s": 0.01', '"plain_s": -1'), "damaged"),
        (whole.replace('"verify"', '"verily"'), "damaged"),
    ):
        path.write_text(damage)
        with pytest.raises(ValueError, match=message):
            kept.load(path, elsewhere=True)


def run_of(accepted: dict[int, int], k: int, **changes: Any) -> Figures:
    """Figures of a run whose cycles accepted so much."""
    cycles = sum(accepted.values())
    tokens = cycles + sum(a * n for a, n in accepted.items())
    figures: dict[str, Any] = {
        "num_draft": k,
        "tau": tokens / cycles,
        "accept_hist": {str(a): n for a, n in accepted.items()},
        "alpha_hat": 0.9,
        "tokens": tokens,
        "cycles": cycles,
        "requests": 1,
    }
    return Figures(**figures | changes)


HIGH = run_of({4: 80, 2: 10, 0: 10}, 4)  # tau 4.4 of 5
EXPERTS = {1: 1.7, 2: 2.2, 4: 2.9, 8: 3.6}
BUSY = {1: 1.2, 2: 1.9, 4: 3.4, 8: 6.4}


@pytest.mark.parametrize(
    ("name", "machine", "speedup", "words"),
    [
        ("draft", {"draft": {k: 0.8 * k for k in KS}}, None, "4 draft passes follow each other"),
        ("verification", {"batch": 32, "verify": BUSY}, None, "not free at this batch: 32 rows"),
        ("overhead", {"call_s": 0.02}, 1.1, "run the loop on the device"),
        ("verification", {"verify": EXPERTS}, None, "mixture of experts"),
    ],
    ids=["draft", "batch", "host", "experts"],
)
def test_high_acceptance_and_no_speedup(
    name: str, machine: dict[str, Any], speedup: float | None, words: str
) -> None:
    given = costs(**machine)
    found = explain(HIGH, given, speedup=speedup, device="gpu NVIDIA H100")
    assert found.first.name == name, found.text
    assert words in found.text and f"The limit is {name}" in found.text
    # The numbers are those of the prediction, and of it with one factor perfect.
    curve = survival_of(HIGH.accept_hist, 4)
    assert found.predicted == pytest.approx(predict(curve, given, [4]).speedup[0])
    by_name = {limit.name: limit for limit in found.limits}
    beyond = 4.4 / found.speedup - given.total(4)
    perfect = {
        "draft": dataclasses.replace(given, draft=dict.fromkeys(KS, 0.0), rest=beyond),
        "verification": dataclasses.replace(given, verify=dict.fromkeys(KS, 1.0), rest=beyond),
        "overhead": dataclasses.replace(given, rest=0.0),
    }
    for factor, ideal in perfect.items():
        assert by_name[factor].speedup == pytest.approx(predict(curve, ideal, [4]).speedup[0])
    whole = predict([1.0] * 4, dataclasses.replace(given, rest=beyond), [4]).speedup[0]
    assert by_name["acceptance"].speedup == pytest.approx(whole)
    assert found.first.speedup == max(limit.speedup for limit in found.limits)
    assert ("hunt" in found.text) == (name == "overhead")
    assert ("MoE" in found.text) == (words == "mixture of experts")


def test_low_acceptance_a_k_too_large_and_other_hints() -> None:
    low = explain(run_of({0: 80, 1: 20}, 8), costs(), device="gpu NVIDIA H100")
    assert low.first.name == "acceptance"
    assert "check_drafter" in low.text and low.prediction.best_k < 8
    assert f"With k = {low.prediction.best_k}" in low.text or "decode plainly" in low.text

    small = explain(run_of({2: 95, 0: 5}, 2), costs())
    assert "k may be too small" in small.text and "k = 4" in small.text

    # 12 tokens a request: ten cycles and a tenth of the time before the first token.
    short = explain(
        run_of({4: 2, 0: 2}, 4, requests=1, ttft_ms=510.0, tpot_ms=1e3 * 0.012, step_ms=10.0),
        costs(),
    )
    assert "Texts are short, 12 tokens" in short.text
    assert "Prefill is 78% of a request's time" in short.text
    assert short.measured_over_predicted == pytest.approx(1.2)  # a step of 10 instead of 12 ms

    assert "noisy" in explain(HIGH, costs(noise=0.5)).text
    on_cpu = explain(HIGH, costs(verify=EXPERTS, draft=dict.fromkeys(KS, 0.01)), device="cpu cpu")
    assert "A CPU has little arithmetic" in on_cpu.text and "MoE" not in on_cpu.text
    fine = explain(run_of({1: 100}, 1), costs(draft=dict.fromkeys(KS, 0.0)))
    assert "No single factor" in fine.text

    with pytest.raises(ValueError, match="no speculation"):
        explain(Figures(), costs())
    with pytest.raises(ValueError, match="k=9"):
        explain(run_of({4: 1}, 9), costs())


class Clockwork:
    """A program whose calls cost 5 s, whose cycles 2 s, and whose first call 100 s more."""

    def __init__(self) -> None:
        self.called = False

    def run(self, cycles: int) -> float:
        cold, self.called = 0.0 if self.called else 100.0, True
        return 5.0 + cold + 2.0 * cycles


def test_a_cycle_is_timed_without_its_call() -> None:
    for cycles in (2, 16):
        assert timed(Clockwork(), cycles)() == pytest.approx(2.0)  # type: ignore[arg-type]


def test_cycles_begin_where_texts_begin_to_need_their_slots() -> None:
    """Or behind the texts that are asked for; all caches are taken to hold them."""
    assert (begins_at(512), begins_at(1024), begins_at(4096)) == (PROMPT_TOKENS, 512, 2048)
    target = tiny.model()
    spec = tiny.make("lm", 3, target=target)
    program = CycleProgram(target, spec, slots=256, batch=2, lengths=[200, 20])
    state = program._fresh()
    assert state.length.tolist() == [200, 20]
    caches = caches_in((state.cache, state.draft))
    assert len(caches) == 2 and all(c.length.tolist() == [199, 19] for c in caches)
    assert program.most_cycles == 56 // 4 and program.run(3) > 0
