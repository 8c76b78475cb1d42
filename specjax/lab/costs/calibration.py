"""Measures on the machine at hand what a cycle costs: v(k), drafting, the rest, device calls.

The drafter is timed in a loop of its own (`programs.DraftProgram`), not as the difference of two
cycles: a difference of two large numbers has the noise of both, and by construction would leave no
rest. Compiled into one program the parts may share work or get into each other's way; that is the
rest, which whole cycles tell, and `Costs.additivity` says how well the parts add up.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from specjax.checkpoint.drafters.named import as_spec
from specjax.checkpoint.load import Model
from specjax.core.family import Family
from specjax.core.machine import Machine
from specjax.drafters import NoDraft, Spec
from specjax.drafters.base import parents_of
from specjax.drafters.checking import bind
from specjax.drafters.family import family_of
from specjax.drafters.spec import name_of, with_num_draft
from specjax.lab.costs import account
from specjax.lab.costs.adaptive import check_one_width
from specjax.lab.costs.experts import has_experts
from specjax.lab.costs.programs import CycleProgram, DraftProgram, Silent, begins_at
from specjax.lab.costs.rounds import Sample, Timers, summarise, take
from specjax.lab.records.costs import Calibration, Costs
from specjax.lab.records.experts import Reads
from specjax.lab.records.run import Target
from specjax.sampling import Options
from specjax.session import Row
from specjax.session.requests import check_requests
from specjax.session.slots import bucket
from specjax.verify import Rule

KS = (1, 2, 3, 4, 6, 8, 12, 16)
_COMPILING = 0.6  # about this share of the time goes into compiling

Progress = Callable[[float, str], None]  # (share that is done, what comes now)


def calibrate(
    target: Model,
    spec: Spec | str | None,
    *,
    ks: Sequence[int] | None = None,
    batches: Sequence[int] = (1,),
    contexts: Sequence[int] = (256,),
    repeats: int = 7,
    cycles: int = 16,
    temperature: float = 0.0,
    rule: str | Rule | None = None,
    max_seconds: float = math.inf,
    progress: Progress = lambda share, what: None,
) -> Calibration:
    """Measures the costs of cycles on this machine, compiled as `generate` compiles them.

    Three programs are compiled for each k, batch and context, and one more for the plain step.

    Args:
      target: from `specjax.load`.
      spec: the drafter or its name; its num_draft is set to each k. None: only verification is
        measured, and a draft costs nothing.
      ks: numbers of guesses; None: `KS` and the drafter's own, up to the most it can guess.
      batches: rows decoded together.
      contexts: lengths of text, prompt included; each gets as many slots as in a session.
      repeats: rounds; costs are medians over them.
      cycles: in one timing, where they fit; plain steps are three times as many.
      temperature: of the verification rule's work; 0: greedy.
      rule: of verification; None: the best for drafter and temperature.
      max_seconds: after these no further round is begun, but for the first, and no further batch or
        context.
      progress: called before each step with the share that is done, and what comes.

    Raises:
      ValueError: in one line, before anything is timed, if target, drafter and numbers do not fit.
    """
    for name, values in (("batches", batches), ("contexts", contexts)):
        check_numbers(name, values)
    check_numbers("repeats and cycles", (repeats, cycles))
    spec = None if spec is None else as_spec(spec, target)
    ks, slots = choose_ks(target, spec, ks), sorted({bucket(c) for c in contexts})
    check_fits(target, spec, ks, slots, temperature, rule)
    begin, cells = time.perf_counter(), [(b, s) for s in slots for b in sorted(set(batches))]
    late = lambda: time.perf_counter() - begin > max_seconds
    found: list[Costs] = []
    for i, (batch, context) in enumerate(cells):
        if found and late():
            progress(i / len(cells), "out of time: the larger batches and contexts are left out")
            break
        say = _within(progress, i, len(cells), f"batch {batch}, {context} slots: ")
        sizes: dict[str, Any] = {"batch": batch, "slots": context, "cycles": cycles}
        cell = Cell(target, spec, ks, **sizes, temperature=temperature, rule=rule, say=say)
        for j in range(repeats):
            if j and late():
                break
            say(_COMPILING + (1 - _COMPILING) * j / repeats, f"round {j + 1} of {repeats}")
            cell.round()
        found.append(cell.costs())
    return Calibration(Machine.here(), Target.of(target), tuple(found))


def _within(progress: Progress, index: int, count: int, what: str) -> Progress:
    """Progress of one of ``count`` cells."""
    return lambda share, now: progress((index + share) / count, what + now)


class Cell:
    """The programs of one batch and one number of slots, and their timings so far."""

    def __init__(
        self,
        target: Model,
        spec: Spec | None,
        ks: Sequence[int],
        *,
        batch: int,
        slots: int,
        cycles: int,
        temperature: float = 0.0,
        rule: str | Rule | None = None,
        say: Progress = lambda share, what: None,
    ):
        """Compiles everything, and runs it once. Arguments as for `calibrate`."""
        self._batch, self._slots, self._temperature = batch, slots, temperature
        self._target, self._cycles = target, cycles
        self._programs: dict[int, tuple[CycleProgram, CycleProgram | None]] = {}
        self._calls: list[float] = []
        self._timers: dict[int, Timers] = {}
        self._samples: dict[int, list[Sample]] = {k: [] for k in ks}
        self._draft_calls: dict[int, int] = {}
        self._rounds = 0
        common: dict[str, Any] = {"slots": slots, "batch": batch, "temperature": temperature}
        say(0.0, "compiling the plain step")
        self._plain = CycleProgram(target, NoDraft(), **common)
        self._drafter, self._rule = "" if spec is None else name_of(spec), ""
        for i, k in enumerate(ks):
            say(_COMPILING * (i + 0.5) / (len(ks) + 0.5), f"compiling k = {k}")
            kind, draft, whole, parents = "one_hot", None, None, None
            chosen: str | Rule | None = rule
            if spec is not None:
                whole = CycleProgram(target, with_num_draft(spec, k), rule=rule, **common)
                draft = DraftProgram(target, with_num_draft(spec, k), rule=rule, **common)
                kind, chosen = whole.drafter.kind, whole.rule
                parents = parents_of(whole.drafter)
                serial = account.serial_passes(spec, whole.num_draft)
                self._draft_calls[k] = max(serial, 1)
            silent = CycleProgram(target, Silent(k, kind, parents=parents), rule=chosen, **common)
            self._programs[k] = silent, whole
            self._rule = silent.rule.name
            count = min(cycles, silent.most_cycles)
            # Plain steps are short: over as few as these they would still be warming the caches up,
            # a tenth slower than in a text.
            steps = min(3 * count, self._plain.most_cycles)
            self._timers[k] = Timers(
                plain=timed(self._plain, steps),
                verify=timed(silent, count),
                draft=None if draft is None else timed(draft, count),
                cycle=None if whole is None else timed(whole, count),
            )
            take(self._timers[k], reverse=False)
        self._plain.run(1)

    def round(self) -> None:
        """Times every k once; every other time in reverse order."""
        reverse, self._rounds = self._rounds % 2 == 1, self._rounds + 1
        for k in sorted(self._timers, reverse=reverse):
            self.sample(k, reverse=reverse)

    def sample(self, k: int, *, reverse: bool) -> None:
        """Times one k, and what calling the device costs: t(n) = call + n steps."""
        self._samples[k].append(take(self._timers[k], reverse=reverse))
        many = min(8, self._plain.most_cycles)
        self._calls.append((many * self._plain.run(1) - self._plain.run(many)) / (many - 1))

    def costs(self) -> Costs:
        """The costs by the rounds so far."""
        costs = summarise(
            self._samples,
            batch=self._batch,
            context=self._slots,
            draft_calls=self._draft_calls,
            call_s=max(statistics.median(self._calls), 0.0),
            drafter=self._drafter,
            rule=self._rule,
            temperature=self._temperature,
        )
        return with_reads(costs, self._reads()) if has_experts(self._target) else costs

    def _reads(self) -> tuple[Reads, dict[int, float]]:
        """What verification alone read, by k, and what whole cycles did."""
        read = lambda program: program.union(self._cycles).distinct[-1]
        silent = {k: read(program) for k, (program, _) in self._programs.items()}
        whole = {k: read(program) for k, (_, program) in self._programs.items() if program}
        reads = Reads(*account.expert_bytes(self._target.net), {0: read(self._plain), **silent})
        return reads, whole


def with_reads(costs: Costs, found: tuple[Reads, Mapping[int, float]]) -> Costs:
    """Of a target with experts: whole cycles as if they had read what verification alone did.

    Their guesses are others, so that verification in them read other experts.
    """
    reads, whole = found
    more = {k: costs.verify[k] * (1 - reads.ratio(k, n)) for k, n in whole.items()}
    cycle = {k: c + more.get(k, 0.0) for k, c in costs.cycle.items()}
    rest = statistics.median(c - costs.draft[k] - costs.verify[k] for k, c in cycle.items())
    return dataclasses.replace(costs, cycle=cycle, rest=rest, reads=reads)


def timed(program: CycleProgram | DraftProgram, cycles: int) -> Callable[[], float]:
    """Seconds that one cycle more takes: neither calling the device nor its cold start is in it.

    Both weigh most on the plain step, the cheapest of all: divided by it, every cost would come out
    too low. The first, short call brings the weights back into the processor's caches after another
    program has run.
    """

    def marginal() -> float:
        program.run(1)
        short, long = program.run(1), program.run(cycles)
        # A disturbed short call tells nothing; with its share of the call it is too much at worst.
        return (long - short) / (cycles - 1) if long > short else long / cycles

    return marginal


def check_numbers(name: str, values: Sequence[int]) -> None:
    """Raises ValueError unless they are positive integers, at least one."""
    whole = [isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values]
    if not values or not all(whole):
        raise ValueError(f"{name} = {list(values)}: must be positive integers, at least one.")


def choose_ks(target: Model, spec: Spec | None, ks: Sequence[int] | None) -> tuple[int, ...]:
    """The numbers of guesses to measure, checked against drafter and target."""
    if spec is not None and family_of(spec) is Family.NONE:
        raise ValueError("NoDraft guesses nothing: pass None to measure verification alone.")
    if ks is not None:
        check_numbers("ks", ks)
        return tuple(sorted(set(ks)))
    if spec is None:
        return KS
    own = bind(spec, target, "one_hot")[0].num_draft
    fit = []
    for k in sorted({*KS, own}):
        try:
            bind(with_num_draft(spec, k), target, "one_hot")
        except ValueError:
            if k <= own:
                raise
        else:
            fit.append(k)
    return tuple(fit)


def check_fits(
    target: Model,
    spec: Spec | None,
    ks: Sequence[int],
    slots: Sequence[int],
    temperature: float,
    rule: str | Rule | None,
) -> None:
    """Raises ValueError if some cell could not be measured."""
    longest = target.config.max_position_embeddings
    least = min(min(slots), longest)
    room = least - begins_at(least)
    if max(ks) + 1 > room:
        raise ValueError(
            f"k={max(ks)} does not fit into {min(slots)} slots: use larger contexts or fewer k."
        )
    if bucket(longest) < max(slots):
        raise ValueError(f"{max(slots)} slots: {target.name} is limited to {longest} tokens.")
    row = Row([0], Options(temperature=temperature), 0, 1, ())
    for k in ks:
        one = Silent(k) if spec is None else with_num_draft(spec, k)
        check_requests(target, one, [row], rule)
        check_one_width(bind(one, target, "one_hot")[0], name_of(one))
