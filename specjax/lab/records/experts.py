"""How many experts of a mixture the passes of a run read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from specjax.lab.records.codec import absent


@dataclasses.dataclass(frozen=True)
class Union:
    """Distinct experts a layer and pass, on average over passes and layers that have such.

    Attributes:
      num: of a layer.
      chosen: that one token goes to.
      distinct: [K + 1] those that any of the first 1, 2, .. tokens of a block goes to, over all
        rows of a pass; the last is what a verify pass reads. A pass that fed fewer counts with all
        of its own.
      expected: [K + 1] the same if each token drew for itself, all experts alike.
    """

    num: int
    chosen: int
    distinct: tuple[float, ...]
    expected: tuple[float, ...]

    @property
    def by_guesses(self) -> dict[int, float]:
        """k -> distinct experts of a pass over k guesses; 0: of a plain step."""
        return dict(enumerate(self.distinct))

    @property
    def text(self) -> str:
        """Such as "7.2 of 32 a layer and pass (9.1 if tokens chose independently)"."""
        alone = "" if len(self.distinct) == 1 else f", {self.distinct[0]:.1f} by one token a row"
        return (
            f"{self.distinct[-1]:.1f} of {self.num} a layer and pass "
            f"({self.expected[-1]:.1f} if tokens chose independently{alone})"
        )


@dataclasses.dataclass(frozen=True)
class Reads:
    """Bytes of weights that the passes of a calibration read, of a target with experts.

    A pass costs what it reads, so that costs of passes that read other experts follow
    (`Costs.reading`).
    """

    others: float  # bytes that every pass reads, of one device
    each: float  # bytes of one expert in every layer that has such
    distinct: Mapping[int, float] = absent({})  # k -> experts a layer of a pass over k guesses

    def ratio(self, k: int, distinct: float) -> float:
        """Bytes of a pass that reads so many experts over those of the calibrated pass of k."""
        return self.bytes(distinct) / self.bytes(self.distinct[k])

    def bytes(self, distinct: float) -> float:
        """Bytes of weights of a pass that reads so many experts a layer."""
        return self.others + self.each * distinct
