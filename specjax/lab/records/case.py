"""Cases: one setting over all prompts of a set, planned, measured, and pooled over settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from specjax.lab.records.codec import absent, from_json, to_json
from specjax.lab.records.experts import Union
from specjax.lab.records.prediction import Predicted
from specjax.trace import metrics as of_trace
from specjax.trace.bootstrap import Interval
from specjax.trace.depth import Depth

PLAIN = "none"  # the drafter of plain decoding
# How rows follow one another: batches that begin together, or prompts that move in where one ends.
LOCKSTEP, REFILLED = ROWS = ("lockstep", "refilled")
# What a pooled row, and a category of prompts, has of the figures.
TOTALS = ("tau", "accept_rate", "survival", "tpot_ms", "tokens", "cycles", "requests")
_SPEEDS = tuple(f.name for f in dataclasses.fields(of_trace.Speedup))


@dataclasses.dataclass(frozen=True)
class Forced:
    """What acceptance was forced to: the text is not the model's."""

    source: str = ""
    survival: tuple[float, ...] = ()
    tau: float | None = None
    tau_source: float | None = absent()  # what the source said, where forcing changed it
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """A case of run.json."""

    name: str  # its directory
    prompt_set: str = absent("")
    drafter: str  # `PLAIN`, or what guesses
    num_draft: int = 0
    rule: str = ""
    temperature: float | None = absent()
    batch: int | None = absent()
    rows: str = absent(LOCKSTEP)  # of `ROWS`
    mode: str = absent("")
    plain: str = absent("")  # the name of the case that it is compared with
    kind: str = absent("")  # how guesses are drawn
    family: str | None = absent()
    lossless: bool = absent(True)  # of the rule
    synthetic: Forced | None = absent()


@dataclasses.dataclass(frozen=True)
class Figures(of_trace.Figures):
    """With what the benchmark measures besides."""

    compile_s: float | None = absent()
    compiles_after_warmup: int | None = absent()


@dataclasses.dataclass(frozen=True)
class Comparison(of_trace.Comparison):
    """With how much the target preferred plain decoding's token, where texts part."""

    margin_at_diff: float | None = None  # at ``first_diff``
    largest_margin: float | None = None  # of all requests


@dataclasses.dataclass(frozen=True)
class Category(of_trace.Figures):
    """The figures of one category's prompts; `TOTALS` and the speedup are written."""

    speedup: float | None = absent()


@dataclasses.dataclass(frozen=True)
class Wall:
    """Whole generations, prefill and the host's work included, repeat by repeat."""

    seconds_per_token: float  # the median over repeats
    tokens_per_s: float
    speedup: float  # over plain decoding: the median of each repeat's
    speedup_by_repeat: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Over:
    """What a pooled row is over."""

    prompt_sets: tuple[str, ...]
    temperatures: tuple[float | None, ...]
    batches: tuple[int | None, ...]
    prompts: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case(Planned):
    """A case of metrics.json, or a pooled row, which has `TOTALS` and speedups alone."""

    stop_rule: str | None = absent()
    run: str | None = absent()  # the name of its run beside others
    over: Over | None = absent()
    metrics: Figures
    intervals: of_trace.Intervals = dataclasses.field(default_factory=of_trace.Intervals)
    compare: Comparison | None = None
    predicted: Predicted | None = None
    per_category: Mapping[str, Category] | None = absent()
    wall: Wall | None = absent()
    depths: tuple[Depth, ...] = absent(
        ()
    )  # tau by the text's length, where it grows past the first
    experts: Union | None = absent()  # that its passes read, of a target with such

    @property
    def is_plain(self) -> bool:
        return self.drafter == PLAIN

    @property
    def is_synthetic(self) -> bool:
        """Whether the text is not the model's; plain decoding beside such cases is."""
        return (self.mode == "synthetic" or self.synthetic is not None) and not self.is_plain

    @property
    def speedup(self) -> float | None:
        """Over plain decoding; None where it was not compared, or has no times."""
        return None if self.compare is None else self.compare.speedup

    @property
    def speedup_interval(self) -> Interval:
        """The 95 % interval of the speedup; None where there is none."""
        return None if self.compare is None else self.compare.speedup_interval


def write_case(case: Case) -> dict[str, Any]:
    """The case as JSON values."""
    found: dict[str, Any] = to_json(case)
    if case.mode == "replay":
        found["stop_rule"] = case.stop_rule
    for category in found.get("per_category", {}).values():
        _keep(category, (*TOTALS, "speedup"))
    if case.over is not None:
        _keep(found["metrics"], TOTALS)
        _keep(found["compare"] or {}, _SPEEDS)
    return found


def _keep(found: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in found.keys() - set(names):
        del found[name]


def lossy(lossless: bool, rule: str) -> str:
    """What stands beside figures of a rule that is not lossless; "": it is."""
    if lossless:
        return ""
    return (
        f"the rule {rule} keeps guesses that the target might not have said: the "
        "text is not the target's own, and its tau and speed are bought with that."
    )


def read_case(value: Any, where: str = "") -> Case:
    """A case of metrics.json. Raises ValueError, in one line, if it is none."""
    named = value.get("name", where) if isinstance(value, Mapping) else where
    return from_json(Case, value, f"Case {named}")
