"""What was measured of decoding under load."""

from __future__ import annotations

import dataclasses

from specjax.core.machine import Machine


@dataclasses.dataclass(frozen=True)
class Spread:
    """Over requests."""

    p50: float
    p95: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """All requests decoded in one way at one concurrency: the median round, by its tokens/s."""

    concurrency: int  # rows that decode together
    drafter: str  # "none": plain decoding
    way: str  # "lockstep": batches that begin together; "refilled": rows that change hands
    tokens_per_second: float
    tau: float
    occupancy: float  # the share of all rows' cycles that a request used
    ttft_s: Spread  # until a request's first tokens, all of them asked at time 0
    latency_s: Spread  # until its last
    tpot_ms: Spread  # between its first and its last, a token
    over_lockstep: float | None = None  # of the same drafter: median over the rounds
    over_plain: float | None = None  # of plain decoding, refilled


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Every concurrency, and how it was asked."""

    target: str
    drafter: str
    rule: str
    requests: int
    tokens: int  # of all requests
    longest: int  # new tokens of a request, and of the shortest
    shortest: int
    rounds: int
    machine: Machine
    served: tuple[Served, ...] = ()
    version: int = 1
