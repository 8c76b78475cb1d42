"""What the cost model says: speedup against k, and to one case."""

from __future__ import annotations

import dataclasses

# What an overhead below 0 means, wherever one is shown.
NEGATIVE_OVERHEAD = "a cycle took less than drafting and verifying apart: times or costs are rough."


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Speedup over plain decoding against k, all for one batch."""

    batch: int
    context: int
    ks: tuple[int, ...]
    tau: tuple[float, ...]  # tokens per target pass, the target's own included
    cost: tuple[float, ...]  # of a cycle, in plain steps
    speedup: tuple[float, ...]
    tokens_per_s: tuple[float, ...]  # of the whole batch
    alpha: float  # the one that the single-alpha formula was given
    single_alpha_speedup: tuple[float, ...]  # with the same costs
    best_k: int  # of ks; 0: plain decoding is as fast as any
    single_alpha_best_k: int

    @property
    def best_speedup(self) -> float:
        """At ``best_k``; 1 where that is plain decoding."""
        return max(1.0, *self.speedup)


@dataclasses.dataclass(frozen=True)
class Predicted:
    """What the cost model says of one case; all costs in plain steps.

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


@dataclasses.dataclass(frozen=True)
class Forecast(Prediction):
    """A prediction from a survival curve that was not measured here, for one drafter's costs."""

    curve: str = ""  # a label
    source: str = ""  # where it comes from, in words
    survival: tuple[float, ...] = ()
    drafter: str = ""
    rule: str = ""
    temperature: float = 0.0
