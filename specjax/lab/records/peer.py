"""The benchmark against Transformers: its report, and what the two sides hand over."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from specjax.lab.records import codec

# What bandwidths are measured at: the model's own size, and one that no processor cache holds.
SIZES = (OWN, LARGE) = ("model_size", "256 MiB")


@dataclasses.dataclass(frozen=True)
class Generated:
    """One text."""

    tokens: tuple[int, ...]  # new ones
    seconds: float  # from token ids to token ids
    passes: int  # of the target


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A ratio of two contenders' rates: median and quartiles over all rounds and prompts."""

    median: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Rates:
    """What was measured of one contender."""

    tokens_per_second: float  # the median; NaN: it was not timed
    tau: float  # new tokens per target pass
    all_rates: tuple[float, ...]  # by round and prompt

    def over(self, other: Rates) -> Ratio:
        """Its rates over those of another at the same time."""
        pairs = [a / b for a, b in zip(self.all_rates, other.all_rates, strict=True)]
        quartiles = statistics.quantiles(pairs, n=4) if len(pairs) > 1 else pairs * 3
        return Ratio(statistics.median(pairs), quartiles[0], quartiles[2])


@dataclasses.dataclass(frozen=True)
class Swept:
    """One number of guesses among those to choose from."""

    tokens_per_second: float
    tau: float


@dataclasses.dataclass(frozen=True)
class Bandwidth:
    """Bytes a second, by two ways."""

    product: float
    host_copy: float

    @property
    def best(self) -> float:
        return max(self.product, self.host_copy)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepCosts:
    """The plain step and its parts, in seconds, against the memory floor."""

    weight_bytes: int
    cache_bytes: float
    bandwidth: Mapping[str, Bandwidth]  # at `SIZES`
    floor_seconds: float
    step: float
    host_loop_step: float
    products: Mapping[int, float]  # tokens of a pass -> its matrix products alone
    whole_pass: float = codec.named("pass")
    verify: Mapping[int, float]  # k -> a cycle that verifies k guesses
    draft_cost: float  # of one draft step, in plain steps


@dataclasses.dataclass(frozen=True)
class Expectation:
    """A ratio that is expected to be at least so much."""

    what: str
    of: tuple[str, str]  # contenders
    ratio: float
    quartiles: tuple[float, float]
    least: float
    passed: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeerReport:
    """The whole benchmark. Contenders have names; types are those of the weights."""

    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    load_before: tuple[float, ...]
    load_after: tuple[float, ...]
    names: Mapping[str, Mapping[str, str]]  # type -> "FRAMEWORK WAY" -> contender
    chosen: Mapping[str, Mapping[str, int]]  # type -> way -> number of guesses
    # type -> "FRAMEWORK WAY" -> number of guesses -> what it gave
    sweeps: Mapping[str, Mapping[str, Mapping[int, Swept]]]
    costs: Mapping[str, StepCosts]  # by type
    results: Mapping[str, Rates]  # by contender
    # Contender -> where its text leaves ours of plain decoding.
    texts: Mapping[str, tuple[int, int] | None]
    expectations: tuple[Expectation, ...]

    def plain(self, dtype: str) -> str:
        """Our plain decoding, which the others are put beside."""
        return self.names[dtype]["specjax plain"]
