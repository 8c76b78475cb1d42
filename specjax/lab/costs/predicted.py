"""What the cost model says to a measured case."""

from __future__ import annotations

import math

from specjax.lab.costs.cost_model import predict, survival_of
from specjax.lab.records.costs import Costs
from specjax.lab.records.experts import Union
from specjax.lab.records.prediction import Predicted
from specjax.trace.metrics import Figures


def predict_case(
    figures: Figures,
    costs: Costs,
    k: int,
    measured: float | None,
    experts: Union | None = None,
) -> Predicted:
    """From the figures of a case, costs that know ``k``, and the measured speedup, if any.

    ``experts`` are those that its passes read, where the target has such.

    Raises:
      ValueError: where the costs do not cover ``k``, or nothing was decoded.
    """
    if figures.tau is None:
        raise ValueError("No cycles, so there is nothing to predict.")
    costs = costs.reading(None if experts is None else experts.by_guesses)
    survival = survival_of(figures.accept_hist, k)
    ks = range(min(costs.ks), k + 1)
    curve = predict(survival, costs, ks, alpha=figures.alpha_hat)
    whole, tau = costs.total(k), figures.tau
    draft, verify, rest = costs.draft_at(k), costs.verify_at(k), costs.rest_at(k)
    speedup = tau / whole
    return Predicted(
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
