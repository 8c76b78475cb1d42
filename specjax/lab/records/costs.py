"""What cycles cost on one machine, and the file of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from specjax.core.machine import Machine
from specjax.lab.records import codec
from specjax.lab.records.case import Case
from specjax.lab.records.codec import absent
from specjax.lab.records.experts import Reads
from specjax.lab.records.run import Target
from specjax.session.slots import bucket

VERSION = 1


@dataclasses.dataclass(frozen=True)
class Costs:
    """What cycles cost on one machine, for one batch size and one length of the caches.

    Attributes:
      batch: rows decoded together.
      context: slots of the caches, which a step's cost depends on (`session.slots`).
      plain_s: seconds of one plain decoding step of the whole batch.
      verify: k -> v(k), a cycle that verifies k guesses and drafts nothing, in plain steps.
      draft: k -> all draft work of a cycle of k guesses, in plain steps.
      draft_calls: k -> draft passes of a cycle that follow each other; 1, or no entry: one.
      rest: what a whole cycle costs beyond draft and verify, in plain steps; the median over k. It
        may be below 0: two programs apart can cost more than both in one.
      cycle: k -> a whole cycle as measured, in plain steps: where it is known, so is the rest of
        each k (`rest_at`).
      call_s: seconds that a device call costs beyond its cycles; NaN if unknown.
      noise: distance of the quartiles of the measured cycles over their median, at the worst k.
      drafter: its name; "" for none, where ``draft`` is 0.
      rule: the verification rule of the measured cycles.
      temperature: of the measured cycles.
      reads: what these passes read, of a target with experts; None: every pass reads the same.
    """

    batch: int
    context: int
    plain_s: float
    verify: Mapping[int, float]
    draft: Mapping[int, float]
    draft_calls: Mapping[int, int]
    rest: float = 0.0
    cycle: Mapping[int, float] = dataclasses.field(default_factory=dict)
    call_s: float = math.nan
    noise: float = math.nan
    drafter: str = ""
    rule: str = ""
    temperature: float = 0.0
    reads: Reads | None = absent()

    def __post_init__(self) -> None:
        numbers = {"plain_s": self.plain_s, "rest": self.rest}
        for name, table in (("verify", self.verify), ("draft", self.draft), ("cycle", self.cycle)):
            numbers |= {f"{name}[{k}]": value for k, value in table.items()}
        for name, value in numbers.items():
            if not math.isfinite(value) or (value < 0 and name != "rest"):
                raise ValueError(f"Costs with {name}={value!r}: measure them again.")
        if self.plain_s <= 0:
            raise ValueError(f"Costs with plain_s={self.plain_s!r}: measure them again.")

    @property
    def ks(self) -> tuple[int, ...]:
        """The numbers of guesses that were measured."""
        return tuple(sorted(k for k in self.draft if k in self.verify and k > 0))

    @property
    def c(self) -> float:
        """Cost of one draft pass in plain steps: of those that follow each other at the largest k.

        NaN if nothing was measured.
        """
        if not self.ks:
            return math.nan
        return self.draft[self.ks[-1]] / self.draft_calls.get(self.ks[-1], 1)

    @property
    def additivity(self) -> dict[int, float]:
        """k -> draft + verify + ``rest``, one for all k, over the measured cycle; ideally 1."""
        sums = {k: self.draft[k] + self.verify[k] + self.rest for k in self.ks}
        return {k: total / self.cycle[k] for k, total in sums.items() if k in self.cycle}

    def verify_at(self, k: int) -> float:
        """v(k), linear between measured k. Raises ValueError above the largest."""
        return interpolate({0: 1.0, **self.verify}, k, "v(k)", "k")

    def draft_at(self, k: int) -> float:
        """Draft work of a cycle, linear between measured k. Raises ValueError outside of them."""
        return 0.0 if k == 0 else interpolate(self.draft, k, "the draft's cost", "k")

    def rest_at(self, k: int) -> float:
        """The rest of a cycle of k guesses: of the measured cycles, ``rest`` where there are none.

        Raises ValueError outside of the measured k.
        """
        if k == 0:
            return 0.0
        if not self.cycle:
            return self.rest
        whole = interpolate(self.cycle, k, "a whole cycle", "k")
        return whole - self.draft_at(k) - self.verify_at(k)

    def total(self, k: int) -> float:
        """A cycle of k guesses in plain steps; 1 for k = 0, which is plain decoding."""
        return 1.0 if k == 0 else self.draft_at(k) + self.verify_at(k) + self.rest_at(k)

    def reading(self, distinct: Mapping[int, float] | None) -> Costs:
        """The same of passes that read other experts: a pass costs what it reads.

        Args:
          distinct: k -> experts a layer of a pass over k guesses, 0: of a plain step
            (`experts.Union.by_guesses`); None: those of the calibration. Of a k that it lacks, what
            was measured stands.
        """
        reads = self.reads
        if reads is None or not distinct:
            return self
        known = distinct.keys() & reads.distinct.keys()
        grown = {k: reads.ratio(k, distinct[k]) for k in known}
        plain = grown.get(0, 1.0)
        more = {k: v * (grown.get(k, 1.0) - 1) for k, v in self.verify.items()}

        def steps(table: Mapping[int, float], also: bool) -> dict[int, float]:
            return {k: (v + (more.get(k, 0.0) if also else 0.0)) / plain for k, v in table.items()}

        read = {**reads.distinct, **{k: distinct[k] for k in known}}
        return dataclasses.replace(
            self,
            plain_s=plain * self.plain_s,
            verify=steps(self.verify, True),
            draft=steps(self.draft, False),
            cycle=steps(self.cycle, True),
            rest=self.rest / plain,
            reads=dataclasses.replace(reads, distinct=read),
        )


def interpolate(table: Mapping[int, float], at: int, what: str, axis: str) -> float:
    """Linear between neighbouring entries of ``table``.

    Raises:
      ValueError: outside of the entries; ``what`` and ``axis`` name them in the message.
    """
    if at in table:
        return table[at]
    below = max((x for x in table if x < at), default=None)
    above = min((x for x in table if x > at), default=None)
    if below is None or above is None:
        measured = f"{min(table)} to {max(table)}" if table else "nothing"
        raise ValueError(f"{what} was measured for {axis} = {measured}, not {at}: calibrate there.")
    share = (at - below) / (above - below)
    return (1 - share) * table[below] + share * table[above]


def costs_at(costs: Sequence[Costs], *, batch: int, context: int) -> Costs:
    """Costs for a batch and a length of the caches: measured, or linear between neighbours.

    Seconds are interpolated, not ratios: those of a step are close to linear in either. All of
    ``costs`` must be of one drafter, rule and temperature.

    Raises:
      ValueError: outside of what was measured.
    """
    kinds = sorted({(c.drafter, c.rule, c.temperature) for c in costs})
    if len(kinds) != 1:
        raise ValueError(f"Costs of {len(kinds)} settings instead of one: {kinds}; choose.")
    cells = {(c.batch, c.context): c for c in costs}
    if (batch, context) in cells:
        return cells[batch, context]
    by_context: dict[int, dict[int, Costs]] = {}
    for (b, s), cell in cells.items():
        by_context.setdefault(s, {})[b] = cell
    rows: dict[int, Costs] = {}
    for s in _neighbours(by_context, context, "context"):
        ends = _neighbours(by_context[s], batch, "batch")
        rows[s] = _blend([by_context[s][b] for b in ends], ends, batch)
    ends = _neighbours(rows, context, "context")
    blended = _blend([rows[s] for s in ends], ends, context)
    return dataclasses.replace(blended, batch=batch, context=context)


def _neighbours(table: Mapping[int, object], at: int, axis: str) -> list[int]:
    """The entry itself, or the nearest on both sides. Raises ValueError outside."""
    if at in table:
        return [at]
    below = max((x for x in table if x < at), default=None)
    above = min((x for x in table if x > at), default=None)
    if below is None or above is None:
        raise ValueError(
            f"Costs were measured for {axis} = {', '.join(map(str, sorted(table)))}, and {at} lies "
            "outside: calibrate there."
        )
    return [below, above]


def _blend(ends: Sequence[Costs], places: Sequence[int], at: int) -> Costs:
    """Between two cells, linear in seconds; for one, that cell."""
    if len(ends) == 1:
        return ends[0]
    low, high = ends
    share = (at - places[0]) / (places[1] - places[0])
    plain_s = (1 - share) * low.plain_s + share * high.plain_s

    def mix(a: float, b: float) -> float:
        return ((1 - share) * a * low.plain_s + share * b * high.plain_s) / plain_s

    def table(a: Mapping[int, float], b: Mapping[int, float]) -> dict[int, float]:
        return {k: mix(a[k], b[k]) for k in sorted(a.keys() & b.keys())}

    reads = low.reads
    if reads is not None and high.reads is not None:
        a, b = reads.distinct, high.reads.distinct
        between = {k: (1 - share) * a[k] + share * b[k] for k in sorted(a.keys() & b.keys())}
        reads = dataclasses.replace(reads, distinct=between)
    return dataclasses.replace(
        low,
        reads=reads,
        plain_s=plain_s,
        verify=table(low.verify, high.verify),
        draft=table(low.draft, high.draft),
        cycle=table(low.cycle, high.cycle),
        rest=mix(low.rest, high.rest),
        call_s=(1 - share) * low.call_s + share * high.call_s,
    )


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Costs on one machine, and which machine and target that was."""

    machine: Machine
    target: Target
    costs: tuple[Costs, ...]

    def at(
        self,
        *,
        batch: int = 1,
        context: int = 1,
        drafter: str | None = None,
        rule: str | None = None,
        temperature: float | None = None,
    ) -> Costs:
        """The costs for a batch and texts of ``context`` tokens, which get `limits.bucket` slots.

        Raises:
          ValueError: where they were not measured (`costs_at`), or of several settings.
        """
        asked = {"drafter": drafter, "rule": rule, "temperature": temperature}
        wanted = {key: value for key, value in asked.items() if value is not None}
        fit = [c for c in self.costs if all(getattr(c, k) == v for k, v in wanted.items())]
        if not fit:
            kinds = sorted({(c.drafter, c.rule, c.temperature) for c in self.costs})
            raise ValueError(f"No costs of {wanted}; those measured are of {kinds}: calibrate.")
        return costs_at(fit, batch=batch, context=bucket(context))

    def of(self, case: Case) -> list[Costs]:
        """Those of a case's drafter, rule and temperature, at any batch and context."""
        rule = case.rule.removeprefix("synthetic-")
        wanted = (case.drafter, rule, case.temperature)
        return [c for c in self.costs if (c.drafter, c.rule, c.temperature) == wanted]

    def named(self, drafter: str) -> Calibration:
        """The same under another name of their drafter."""
        costs = tuple(dataclasses.replace(c, drafter=drafter) for c in self.costs)
        return dataclasses.replace(self, costs=costs)

    def join(self, other: Calibration) -> Calibration:
        """Both together, such as of several drafters. Raises ValueError if they do not belong."""
        if self.machine != other.machine or self.target != other.target:
            raise ValueError("Costs of different machines or targets are not joined.")
        return dataclasses.replace(self, costs=self.costs + other.costs)

    def save(self, path: str | Path) -> None:
        """Writes JSON. Raises OSError."""
        record = {"type": "costs", "version": VERSION, **codec.to_json(self)}
        codec.write_file(Path(path).expanduser(), record)


def load(path: str | Path, *, elsewhere: bool = False) -> Calibration:
    """Reads what `Calibration.save` wrote.

    Args:
      path: of the file, or the directory of a run that has one.
      elsewhere: whether costs of another machine will do, such as to explain a run made there.

    Raises:
      ValueError: in one line, on a file that is missing, is none, or is of another machine.
    """
    path = Path(path).expanduser()
    path = path / "costs.json" if path.is_dir() else path
    try:
        record = codec.read_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file of costs; check the path.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as costs: {error}") from None
    if not isinstance(record, dict) or record.get("type") != "costs":
        raise ValueError(f'{path} holds no costs: it has no "type": "costs".')
    codec.check_version(record, VERSION, str(path))
    try:
        found = codec.from_json(Calibration, record, "the file")
    except ValueError as error:
        raise ValueError(f"{path} holds damaged costs ({error}): calibrate again.") from None
    here = Machine.here()
    if not elsewhere and found.machine != here:
        ours, theirs = dataclasses.asdict(here), dataclasses.asdict(found.machine)
        key = next(k for k in sorted(ours) if ours[k] != theirs[k])
        raise ValueError(
            f"{path} was measured on another machine ({key} {theirs[key]!r}, here {ours[key]!r}): "
            "calibrate here, or say that it will do (elsewhere)."
        )
    return found
