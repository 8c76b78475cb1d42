"""Predicted beside measured speedups of many k, and the file of experiments.predict_check."""

from __future__ import annotations

import dataclasses

from specjax.core.machine import Machine
from specjax.lab.records.codec import absent
from specjax.lab.records.costs import Costs
from specjax.lab.records.experts import Union
from specjax.lab.records.run import Target


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
    experts: Union | None = absent()  # that its passes read, of a target with such


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckFile(Check):
    """With what it depends on."""

    machine: Machine
    target: Target
    load: tuple[float, ...]
    prompts: tuple[str, ...]
    max_new_tokens: int
