"""What must stand beside numbers so that nobody takes them for more than they are.

One function makes marks, and everything that is printed prints those: the terminal, results.md,
results.tex and report.html say the same in the same words, and the table names a case's marks in
its row.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Sequence

from specjax.lab.costs.adaptive import no_one_cost
from specjax.lab.records.case import Case, lossy
from specjax.lab.records.prediction import NEGATIVE_OVERHEAD
from specjax.lab.records.run import Run

BUSY = 0.5  # cores or processes of others, on average, from where times are not to be trusted
NOISY = 0.1  # distance of a calibration's quartiles over its median, from where costs are rough
NAMED = 3  # cases that a line names


class Kind(enum.StrEnum):
    """What is wrong, in the words that a table has for it."""

    INVALID = "not valid"
    LOSSY = "not lossless"
    BUSY = "busy machine"
    REPLAYED = "replayed"
    SYNTHETIC = "synthetic"
    LEFT_OUT = "prompts left out"
    UNPREDICTED = "not predicted"
    ONE_PROMPT = "one prompt"
    SPANS_ONE = "interval spans 1"
    ABOVE_TAU = "speedup above tau"
    NEGATIVE_OVERHEAD = "negative overhead"
    ROUGH_COSTS = "rough costs"
    TEXTS_DIFFER = "texts differ"


@dataclasses.dataclass(frozen=True)
class Mark:
    """One remark, and what it is about."""

    kind: Kind
    text: str  # a sentence
    where: str = ""  # the name of a case; "": the whole run


def marks(run: Run, cases: Sequence[Case]) -> tuple[Mark, ...]:
    """All of a run and of its cases, pooled rows among them, the gravest first."""
    found = [*of_run(run), *(mark for case in cases for mark in of_case(case))]
    order = list(Kind)
    return tuple(sorted(found, key=lambda m: order.index(m.kind)))


def of_run(run: Run) -> Iterator[Mark]:
    """Those of run.json."""
    for reason in run.reasons:
        yield Mark(Kind.INVALID, reason)
    if run.mode == "replay":
        yield Mark(
            Kind.REPLAYED, "from recorded greedy texts: tau is exact, times were not measured."
        )
    else:
        load, others = (max(several or (0.0,)) for several in (run.load, run.others))
        told = [f"load {load:g} before"] * (load > BUSY)
        told += [f"other processes took {others:.2g} cores meanwhile"] * (others > BUSY)
        if told:
            yield Mark(Kind.BUSY, f"the machine was not idle ({', '.join(told)}): times are rough.")
    for drafter in run.unpredicted:
        yield Mark(Kind.UNPREDICTED, no_one_cost(drafter))
    if run.left_out:
        yield Mark(
            Kind.LEFT_OUT,
            f"{run.left_out} prompts longer than max_prompt_tokens were not measured.",
        )


def of_case(case: Case) -> Iterator[Mark]:
    """Those of one case, or of a pooled row."""

    def mark(kind: Kind, text: str) -> Mark:
        return Mark(kind, text, case.name)

    if case.is_synthetic:
        yield mark(
            Kind.SYNTHETIC,
            "the text is not the model's: acceptance was forced. The speed is real, for a drafter "
            "that would be accepted as often.",
        )
    if bought := lossy(case.lossless, case.rule):
        yield mark(Kind.LOSSY, bought)
    if case.metrics.requests == 1:
        yield mark(
            Kind.ONE_PROMPT, "there is no interval, and another prompt may tell the opposite."
        )
    if case.is_plain:
        return
    speedup, ends, tau = case.speedup, case.speedup_interval, case.metrics.tau
    if ends is not None and ends[0] <= 1 <= ends[1]:
        yield mark(
            Kind.SPANS_ONE,
            "by the 95 % interval of the speedup it may be faster or slower than plain decoding.",
        )
    if speedup is not None and tau is not None and speedup > tau:
        yield mark(
            Kind.ABOVE_TAU,
            "not even guesses that cost nothing could bring that: times are rough, such as where "
            "plain decoding was disturbed.",
        )
    told = case.predicted
    if told is not None and told.overhead is not None and told.overhead < 0:
        yield mark(Kind.NEGATIVE_OVERHEAD, NEGATIVE_OVERHEAD)
    if told is not None and told.noise is not None and told.noise > NOISY:
        yield mark(
            Kind.ROUGH_COSTS,
            f"the quartiles of the calibration were more than {NOISY:.0%} apart: predictions are "
            "as rough.",
        )
    yield from (mark(Kind.TEXTS_DIFFER, text) for text in _difference(case))


def _difference(case: Case) -> Iterator[str]:
    """Where a text that should be plain decoding's is another."""
    compared = case.compare
    if compared is None or compared.first_diff is None or compared.exact_match is None:
        return
    request, token = compared.first_diff
    margin = compared.margin_at_diff
    told = "" if margin is None else f", where the target preferred it by {margin:.3g}"
    yield (
        f"{compared.exact_match:.0%} of the texts are plain decoding's; request {request} "
        f"leaves it at token {token}{told}."
    )


def lines(found: Sequence[Mark]) -> list[str]:
    """Marks as sentences: one for each kind and text, with the cases that it is about."""
    about: dict[tuple[Kind, str], list[str]] = {}
    for mark in found:
        about.setdefault((mark.kind, mark.text), []).append(mark.where)
    told = []
    for (kind, text), places in about.items():
        named = [p for p in places if p]
        more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
        where = f" ({', '.join(named[:NAMED])}{more})" if named else ""
        told.append(f"{kind[0].upper()}{kind[1:]}{where}: {text}")
    return told


def words(case: Case) -> str:
    """A case's marks as its row in a table names them."""
    return ", ".join(dict.fromkeys(str(mark.kind) for mark in of_case(case)))
