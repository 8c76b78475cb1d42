"""What the cost model says to a case: one record, written to metrics.json and read from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from specjax.lab.costs.cost_model import Costs, Prediction, predict, survival_of

# What an overhead below 0 means, wherever one is shown.
NEGATIVE_OVERHEAD = "a cycle took less than drafting and verifying apart: times or costs are rough."


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Of one case; all costs in plain steps.

    Attributes:
      speedup: tau / the cost of a cycle, with the measured tau: tokens that were cut off at the end
        of a text count neither here nor there.
      measured_over_predicted: None where no speed was measured.
      overhead: of a cycle, beyond drafting and verifying: as measured, or as calibrated where no
        speed was measured. Below 0: it took less than its parts apart, so that something is rough.
      noise: of the calibration (`Costs.noise`); None: unknown.
      curve: speedup against k, from this case's survival cut off at smaller k; k from the smallest
        calibrated one to the case's own. None in files of older versions.
    """

    speedup: float
    measured_over_predicted: float | None
    single_alpha_speedup: float
    best_k: int
    context: int
    plain_step_ms: float
    cost_draft: float
    cost_verify: float
    cost_rest: float
    share_draft: float
    share_verify: float
    share_rest: float
    overhead: float | None = None
    noise: float | None = None
    curve: Prediction | None = None

    @classmethod
    def of(
        cls, figures: Mapping[str, Any], costs: Costs, k: int, measured: float | None
    ) -> Predicted:
        """From `metrics.figures`, costs that know ``k``, and the measured speedup, if any.

        Raises:
          ValueError: where the costs do not cover ``k``.
        """
        survival = survival_of(figures["accept_hist"], k)
        ks = range(min(costs.ks), k + 1)
        curve = predict(survival, costs, ks, alpha=figures["alpha_hat"])
        whole, tau = costs.total(k), figures["tau"]
        draft, verify, rest = costs.draft_at(k), costs.verify_at(k), costs.rest_at(k)
        speedup = tau / whole
        return cls(
            speedup=speedup,
            measured_over_predicted=None if measured is None else measured / speedup,
            single_alpha_speedup=curve.single_alpha_speedup[-1],
            best_k=curve.best_k,
            context=costs.context,
            plain_step_ms=1e3 * costs.plain_s,
            cost_draft=costs.c,
            cost_verify=verify,
            cost_rest=rest,
            share_draft=draft / whole,
            share_verify=verify / whole,
            share_rest=rest / whole,
            overhead=rest if measured is None else tau / measured - draft - verify,
            noise=None if math.isnan(costs.noise) else costs.noise,
            curve=curve,
        )

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)


def read(case: Mapping[str, Any]) -> Predicted | None:
    """Of a case of metrics.json; None where nothing was predicted.

    Raises:
      ValueError: in one line, if it is no such record.
    """
    found = case.get("predicted")
    if not found:
        return None
    try:
        curve = found.get("curve")
        if curve is not None:
            lists: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in curve.items()
            }
            curve = Prediction(**lists)
        return Predicted(**{**found, "curve": curve})
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f'Case {case.get("name")}: "predicted" is no prediction ({error}); make metrics.json '
            "anew with experiments.benchmark --report_only."
        ) from None
