"""Does the cost model predict what is measured? Both in one run, round by round.

A round measures, for one k after the other, generations with and without the drafter in turn, and
takes a sample of the costs of that k behind each prompt; so whatever drifts on the machine meets
both sides.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from specjax import api
from specjax.checkpoint.load import Model
from specjax.drafters import NoDraft, Spec
from specjax.lab.costs.calibration import Cell, check_fits, with_num_draft
from specjax.lab.costs.cost_model import Costs, predict, survival_of
from specjax.limits import MIN_SLOTS, bucket
from specjax.trace import metrics
from specjax.trace.trace import Trace

Progress = Callable[[float, str], None]  # (share that is done, what comes now)


@dataclasses.dataclass(frozen=True)
class Checked:
    """One k: what was measured, and what was predicted from acceptance and costs."""

    k: int
    tau: float  # measured
    speedup: float  # measured: median over rounds of the ratio of times per token
    predicted: float  # from the survival curve of this k
    ratio: float  # measured over predicted
    from_largest: float  # predicted from the curve of the largest k, cut off at k
    single_alpha: float  # by the single-alpha formula, with the alpha of this k


@dataclasses.dataclass(frozen=True)
class Check:
    """All k, and the costs that they were predicted from."""

    rows: tuple[Checked, ...]
    costs: Costs
    rounds: int

    @property
    def worst(self) -> float:
        """The largest distance of measured over predicted from 1."""
        return max(abs(row.ratio - 1) for row in self.rows)


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

    def _generate(self, spec: Any) -> Trace:
        return Trace.join([self._one(spec, prompt) for prompt in self._prompts])

    def _one(self, spec: Any, prompt: list[int]) -> Trace:
        return api.generate(
            self._target, spec, prompt, max_new_tokens=self._new, stop_token_ids=()
        ).trace

    def round(self) -> None:
        """Measures every k once, every other time in reverse order."""
        reverse, self._rounds = self._rounds % 2 == 1, self._rounds + 1
        for k in sorted(self._ks, reverse=reverse):
            ours, plain = [], []
            for i, prompt in enumerate(self._prompts):
                first = (i + self._rounds) % 2 == 0
                if first:
                    plain.append(self._one(NoDraft(), prompt))
                ours.append(self._one(self._specs[k], prompt))
                if not first:
                    plain.append(self._one(NoDraft(), prompt))
                self._cell.sample(k, reverse=first)
            fast, slow = (metrics.figures(Trace.join(t))["tpot_ms"] for t in (ours, plain))
            self._ratios[k].append(slow / fast)

    def result(self) -> Check:
        """Of the rounds so far."""
        costs = self._cell.costs()
        figures = {k: metrics.figures(trace) for k, trace in self._traces.items()}
        curves = {k: survival_of(f["accept_hist"], k) for k, f in figures.items()}
        largest = predict(curves[self._ks[-1]], costs, self._ks)
        rows = []
        for i, k in enumerate(self._ks):
            found = predict(curves[k], costs, [k], alpha=figures[k]["alpha_hat"])
            speedup = statistics.median(self._ratios[k])
            rows.append(
                Checked(
                    k=k,
                    tau=figures[k]["tau"],
                    speedup=speedup,
                    predicted=found.speedup[0],
                    ratio=speedup / found.speedup[0],
                    from_largest=largest.speedup[i],
                    single_alpha=found.single_alpha_speedup[0],
                )
            )
        return Check(tuple(rows), costs, self._rounds)
