"""What the cost model predicts, beside measurements of one pair, or from curves and stored costs.

A round of `PredictionCheck` measures, for one k after the other, generations with and without the
drafter in turn, and takes a sample of the costs of that k behind each prompt; so whatever drifts on
the machine meets both sides.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from specjax import api
from specjax.checkpoint.drafters.named import as_spec
from specjax.checkpoint.load import Model
from specjax.drafters import NoDraft, Spec
from specjax.drafters.checking import bind
from specjax.drafters.family import family_of
from specjax.drafters.spec import name_of, with_num_draft
from specjax.lab.bench.synthetic import Curve
from specjax.lab.costs import turns
from specjax.lab.costs.calibration import (
    Cell,
    calibrate,
    check_fits,
    choose_ks,
)
from specjax.lab.costs.cost_model import predict, survival_of
from specjax.lab.costs.experts import can_count, count, has_experts
from specjax.lab.costs.explain import Explanation, explain, marked
from specjax.lab.records.checked import Check, Checked
from specjax.lab.records.costs import Calibration, Costs
from specjax.lab.records.costs import load as load_costs
from specjax.lab.records.experts import Union
from specjax.lab.records.prediction import Forecast
from specjax.lab.view import grid
from specjax.lab.view.grid import Cell as Text
from specjax.lab.view.grid import Column, Grid, Group
from specjax.session.slots import MIN_SLOTS, bucket
from specjax.trace import metrics
from specjax.trace.trace import Trace

Progress = Callable[[float, str], None]  # (share that is done, what comes now)


class PredictionCheck:
    """Rounds of measurement and calibration of one drafter over several k, greedily, batch 1."""

    def __init__(
        self,
        target: Model,
        spec: Spec,
        prompts: Sequence[Sequence[int]],
        *,
        ks: Sequence[int],
        max_new_tokens: int = 128,
        cycles: int = 16,
        progress: Progress = lambda share, what: None,
    ):
        """Compiles everything and runs it once.

        Args:
          target: from `specjax.load`.
          spec: the drafter; its num_draft is set to each k.
          prompts: token ids; their texts must fit into the smallest caches, so that a cycle costs
            the same from the first to the last.
          ks: numbers of guesses.
          max_new_tokens: of every text; nothing stops it before.
          cycles: in one timing of the calibration.
          progress: called before each step.

        Raises:
          ValueError: in one line, before anything is compiled, on what does not fit.
        """
        self._target, self._ks = target, sorted(set(ks))
        self._prompts, self._new = [list(p) for p in prompts], max_new_tokens
        if not self._prompts or not self._ks:
            raise ValueError("Nothing to check: give at least one prompt and one k.")
        longest = max(map(len, self._prompts)) + max_new_tokens + max(self._ks) + 1
        if longest > MIN_SLOTS:
            raise ValueError(
                f"The longest text needs {longest} slots: use shorter prompts, fewer new tokens or "
                f"a smaller k, so that all fit into {MIN_SLOTS}."
            )
        check_fits(target, spec, self._ks, [bucket(longest)], 0.0, None)
        self._specs = {k: with_num_draft(spec, k) for k in self._ks}
        self._ratios: dict[int, list[float]] = {k: [] for k in self._ks}
        self._rounds = 0
        self._cell = Cell(
            target,
            spec,
            self._ks,
            batch=1,
            slots=bucket(longest),
            cycles=cycles,
            say=lambda share, what: progress(share, what),
        )
        self._traces: dict[int, Trace] = {}
        self._generate(NoDraft())
        for i, k in enumerate(self._ks):
            progress(0.5 + 0.2 * i / len(self._ks), f"warming up k = {k}")
            self._traces[k] = self._generate(self._specs[k])

    def _generate(self, spec: Spec) -> Trace:
        return Trace.join([self._one(spec, prompt) for prompt in self._prompts])

    def _one(self, spec: Spec, prompt: list[int]) -> Trace:
        return api.generate(
            self._target, spec, prompt, max_new_tokens=self._new, stop_token_ids=()
        ).trace

    def round(self) -> None:
        """Measures every k once, every other time in reverse order."""
        reverse, self._rounds = self._rounds % 2 == 1, self._rounds + 1
        for k in sorted(self._ks, reverse=reverse):
            ours, plain = list[Trace](), list[Trace]()
            for i, prompt in enumerate(self._prompts):
                sides = [partial(self._one, s, prompt) for s in (self._specs[k], NoDraft())]
                for traces, trace in zip((ours, plain), turns.take(sides, i + self._rounds)):
                    traces.append(trace)
                self._cell.sample(k, reverse=(i + self._rounds) % 2 == 0)
            self._ratios[k].append(_pace(Trace.join(plain)) / _pace(Trace.join(ours)))

    def result(self) -> Check:
        """What was predicted and measured, by the rounds so far."""
        costs = self._cell.costs()
        figures = {k: metrics.figures(trace) for k, trace in self._traces.items()}
        curves = {k: survival_of(f.accept_hist, k) for k, f in figures.items()}
        read = {k: _experts(self._target, trace) for k, trace in self._traces.items()}
        of = {k: costs.reading(None if u is None else u.by_guesses) for k, u in read.items()}
        largest = predict(curves[self._ks[-1]], of[self._ks[-1]], self._ks)
        rows = []
        for i, k in enumerate(self._ks):
            found = predict(curves[k], of[k], [k], alpha=figures[k].alpha_hat)
            speedup = statistics.median(self._ratios[k])
            rows.append(
                Checked(
                    k=k,
                    tau=self._traces[k].tau,
                    speedup=speedup,
                    predicted=found.speedup[0],
                    ratio=speedup / found.speedup[0],
                    from_largest=largest.speedup[i],
                    single_alpha=found.single_alpha_speedup[0],
                    experts=read[k],
                )
            )
        return Check(tuple(rows), costs, self._rounds)


def _pace(trace: Trace) -> float:
    """Milliseconds a token."""
    pace = metrics.figures(trace).tpot_ms
    assert pace is not None, "these traces have times"
    return pace


def _in_turns(
    sides: Sequence[Callable[[], Trace]], repeats: int, progress: Progress
) -> tuple[Trace, float]:
    """The last trace of the first side, and the median of how much faster it was than the other."""
    for i, side in enumerate(sides):  # compiles
        progress(0.1 * i, "warming up")
        side()
    ratios = []
    for j in range(repeats):
        progress(0.2 + 0.2 * j / repeats, f"generation {j + 1} of {repeats}")
        traces = turns.take(sides, j)
        ratios.append(_pace(traces[1]) / _pace(traces[0]))
    return traces[0], statistics.median(ratios)


def explain_pair(
    target: Model,
    spec: Spec | str,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    rule: str | None = None,
    repeats: int = 5,
    progress: Progress = lambda share, what: None,
) -> tuple[Explanation, Calibration]:
    """Measures, calibrates and explains one drafter on one target, in one go.

    Decodes the prompts as one batch with and without the drafter, calibrates, and explains.

    Costs are measured at the drafter's own k, at smaller ones for the best k, at twice as many if
    it can guess so many, and at batch 1 besides the batch of all prompts.

    Args:
      target: from `specjax.load`.
      spec: the drafter, or its name.
      prompts: token ids.
      max_new_tokens: of every text.
      temperature: of sampling; 0: greedy.
      rule: of verification; None: the best.
      repeats: rounds, of generations as of calibration.
      progress: called before each step.

    Raises:
      ValueError: in one line, on what cannot be served or calibrated.
    """
    spec = as_spec(spec, target)
    k = bind(spec, target, "one_hot")[0].num_draft
    ks = sorted({j for j in choose_ks(target, spec, None) if j <= 2 * k} | {k})
    batch, longest = len(prompts), max(map(len, prompts), default=0) + max_new_tokens

    def generate(drafter: Spec, rule: str | None) -> Trace:
        law: dict[str, Any] = {"temperature": temperature, "rule": rule}
        texts = [list(p) for p in prompts]
        return api.generate(target, drafter, texts, max_new_tokens=max_new_tokens, **law).trace

    sides = [lambda: generate(spec, rule), lambda: generate(NoDraft(), None)]
    trace, speedup = _in_turns(sides, repeats, progress)
    known = calibrate(
        target,
        spec,
        ks=ks,
        batches=sorted({1, batch}),
        contexts=[longest],
        temperature=temperature,
        rule=rule,
        repeats=repeats,
        progress=lambda share, what: progress(0.4 + 0.6 * share, what),
    )
    costs, single = (known.at(batch=b, context=longest, drafter=name_of(spec)) for b in (batch, 1))
    about = trace.about
    told: dict[str, Any] = {"device": known.machine.device, "family": family_of(spec)}
    told["experts"] = _experts(target, trace)
    found = explain(metrics.figures(trace), costs, speedup=speedup, single=single, **told)
    return marked(found, about.lossless, about.rule or ""), known


def _experts(target: Model, trace: Trace) -> Union | None:
    """What its passes read, of a target with experts."""
    return count(target, trace) if has_experts(target) and can_count(trace) else None


def forecast(costs: str | Path, curves: Sequence[Curve]) -> list[Forecast]:
    """Speedup against k, without a device.

    One for each curve, and each drafter, rule, temperature, batch and context of the costs.

    Args:
      costs: costs.json, or the directory of a run that has one.
      curves: each is taken to the most guesses that it and the costs know.

    Raises:
      ValueError: in one line, without curves, or on a file of costs that is none.
    """
    known = load_costs(costs, elsewhere=True)
    if not curves:
        raise ValueError("mode=predict needs curves: TAU@K, FILE.yaml:MODEL:MODE, or RUN:CASE.")
    return [_forecast(curve, cell) for curve in curves for cell in known.costs]


def _forecast(curve: Curve, costs: Costs) -> Forecast:
    if curve.tau is not None and curve.at is None:
        raise ValueError(f"curve {curve.source}: at which k? Write {curve.tau:g}@K.")
    ks = [k for k in costs.ks if curve.most is None or k <= curve.most]
    if not ks:
        raise ValueError(
            f"{curve.source}: none of the k with costs ({', '.join(map(str, costs.ks))}) fits it."
        )
    survival = curve.survival(max(ks))
    return Forecast(
        **vars(predict(survival, costs, ks)),
        curve=curve.label,
        source=curve.source,
        survival=survival,
        drafter=costs.drafter,
        rule=costs.rule,
        temperature=costs.temperature,
    )


def markdown(forecasts: Sequence[Forecast]) -> str:
    """A table of each: k, tau, speedup, what a single alpha would have said."""
    names = ("k", "tau", "cost, plain steps", "speedup", "by one alpha", "tokens/s")
    columns, blocks = tuple(Column(name, numeric=True) for name in names), []
    for f in forecasts:
        rows = zip(f.ks, f.tau, f.cost, f.speedup, f.single_alpha_speedup, f.tokens_per_s)
        cells = tuple(
            (
                *(Text(f"{k}"), Text(f"{tau:.2f}"), Text(f"{cost:.2f}")),
                Text(f"{speedup:.2f}x", best=k == f.best_k),
                *(Text(f"{single:.2f}x"), Text(f"{speed:.0f}")),
            )
            for k, tau, cost, speedup, single, speed in rows
        )
        title = (
            f"{f.source}; {f.drafter or 'no draft'}, {f.rule}, T={f.temperature:g}, "
            f"batch {f.batch}, {f.context} slots"
        )
        text = grid.markdown(Grid(columns, (Group(title, cells),)))
        blocks.append(text + "\nPlain decoding is as fast as any k.\n" * (f.best_k == 0))
    return "\n".join(blocks)
