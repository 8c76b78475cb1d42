"""What was measured of decoding under load."""

from __future__ import annotations

import dataclasses

from specjax.core.machine import Machine


@dataclasses.dataclass(frozen=True)
class Spread:
    """Over requests, or over their cycles."""

    p50: float
    p99: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """Requests decoded in one way at one concurrency: the median round, by its tokens/s.

    A row is a client, who asks when the answer before is there. In lockstep that is when its batch
    is.
    """

    concurrency: int  # rows that decode together
    requests: int
    prompt_tokens: int  # of all
    tokens: int  # new ones, of all
    drafter: str  # "none": plain decoding
    rule: str
    way: str  # "lockstep": batches that begin together; "refilled": rows that change hands
    tokens_per_second: float
    tau: float
    occupancy: float  # the share of all rows' cycles that a request used
    ttft_s: Spread  # from asking to a request's first tokens
    latency_s: Spread  # to its answer
    tpot_ms: Spread  # between its first tokens and its last, a token
    gap_ms: Spread  # between the ends of its cycles, by the clock of device calls
    over_lockstep: float | None = None  # of the same drafter: median over the rounds
    over_plain: float | None = None  # of plain decoding, in rows of the same kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Every concurrency, and how it was asked."""

    target: str
    longest: int  # new tokens of a request, and of the shortest
    shortest: int
    rounds: int
    temperature: float
    machine: Machine
    served: tuple[Served, ...] = ()
    version: int = 1
