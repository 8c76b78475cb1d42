"""What an audit found: a verdict in words, with the first counterexample of each failing check."""

from __future__ import annotations

import dataclasses
import html
import textwrap
from typing import Any


@dataclasses.dataclass(frozen=True)
class Check:
    """One check. Statistic, p-value and power are those of a statistical one, else None."""

    name: str
    passed: bool
    tested: str  # in words: what, on how much, and what it would have seen
    statistic: float | None = None  # chi-square, or the largest deviation of an exact law
    p_value: float | None = None  # of the right law reaching that statistic
    power: float | None = None  # with which `detects` is found
    detects: float | None = None  # what an event of probability 0.1 must have become
    counterexample: str | None = None
    seconds: float = 0.0
    by_design: bool = False  # it does not hold, and the rule says that it need not

    @classmethod
    def unless(cls, *, counterexample: str | None, **fields: Any) -> Check:
        """One that a single counterexample fails; None: there is none."""
        return cls(passed=counterexample is None, counterexample=counterexample, **fields)

    def __str__(self) -> str:
        word = "ok  " if self.passed else "diff" if self.by_design else "FAIL"
        head = f"{word} {self.name}: {self.tested}"
        figures = []
        if self.p_value is not None:
            figures.append(f"p = {self.p_value:.2g}")
        if self.detects is not None:
            figures.append(f"finds 0.1 become {self.detects:.3f} with power {self.power:.2f}")
        if figures:
            head += f" ({'; '.join(figures)})"
        lines = textwrap.wrap(head, 100, subsequent_indent="     ")
        if self.counterexample is not None:
            lines += textwrap.wrap(
                self.counterexample, 100, initial_indent="     > ", subsequent_indent="       "
            )
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class AuditReport:
    """The verdict on a drafter and a rule. Prints as text, and as a table in a notebook."""

    drafter: str
    rule: str
    target: str  # in words
    checks: tuple[Check, ...]
    not_applicable: tuple[tuple[str, str], ...] = ()  # (check, why)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    of_target: bool = False  # whether the target is what was audited
    lossless: bool = True  # what the rule says of itself

    @property
    def passed(self) -> bool:
        return all(check.passed or check.by_design for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed and not check.by_design)

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.of_target:
            return self._verdict_on_target()
        what = f"{self.drafter} with {self.rule}"
        if self.passed and not self.lossless:
            return f"NOT LOSSLESS, as its rule says: {what} {self._deviation()}."
        if self.passed:
            return f"No fault found: {what} passed {_count(len(self.checks))}, on {self.target}."
        if [check.name for check in self.failed] == ["state"]:
            return (
                f"FAULTY STATE: {what} does not guess what a fresh state of the same text would, "
                f"on {self.target}. The text is right whatever is guessed; speed is lost."
            )
        names = ", ".join(check.name for check in self.failed)
        return (
            f"NOT LOSSLESS: {what} fails {len(self.failed)} of {_count(len(self.checks))} "
            f"({names}), on {self.target}."
        )

    def _deviation(self) -> str:
        """By how much the text of a rule that is not lossless is another."""
        differ = [check for check in self.checks if check.by_design]
        if not differ:
            return f"showed no deviation in {_count(len(self.checks))}, on {self.target}"
        exact = next((c.statistic for c in differ if c.name == "rule"), None)
        size = "" if exact is None else f" by up to {exact:.2g} in the probability of a text"
        names = ", ".join(check.name for check in differ)
        return (
            f"deviates from the target's law{size} ({names} of {_count(len(self.checks))}); no "
            f"other fault was found, on {self.target}"
        )

    def _verdict_on_target(self) -> str:
        number, names = _count(len(self.checks)), ", ".join(check.name for check in self.failed)
        if self.passed:
            return f"No fault found: the target {self.target} passed {number}."
        failed = f"fails {len(self.failed)} of {number} ({names})"
        return f"FAULTY: the target {self.target} {failed}: text by it may not be its own."

    @property
    def ending(self) -> str:
        """What follows the checks: those that do not apply, notes, the verdict."""
        lines = []
        for name, why in self.not_applicable:
            lines += textwrap.wrap(f"--   {name}: {why}", 100, subsequent_indent="     ")
        for note in self.notes:
            lines += textwrap.wrap(f"note: {note}", 100, subsequent_indent="      ")
        return "\n".join([*lines, *textwrap.wrap(self.verdict, 100)])

    def __str__(self) -> str:
        return "\n".join([*map(str, self.checks), self.ending])

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            **dataclasses.asdict(self),
        }

    def _repr_html_(self) -> str:
        rows = []
        for check in self.checks:
            color, word = ("#1a7f37", "passed") if check.passed else ("#cf222e", "FAILED")
            if check.by_design:
                color, word = "#9a6700", "differs"
            words = html.escape(check.tested)
            if check.counterexample is not None:
                words += f"<br><b>Counterexample.</b> {html.escape(check.counterexample)}"
            p = "" if check.p_value is None else f"{check.p_value:.2g}"
            cells = [
                f"<td>{html.escape(check.name)}</td>",
                f'<td style="color:{color};font-weight:600">{word}</td>',
                f'<td style="text-align:left">{words}</td>',
                f"<td>{p}</td>",
            ]
            rows.append(f"<tr>{''.join(cells)}</tr>")
        for name, why in self.not_applicable:
            rows.append(
                f"<tr><td>{html.escape(name)}</td><td>not applicable</td>"
                f'<td style="text-align:left">{html.escape(why)}</td><td></td></tr>'
            )
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        head = "<tr><th>check</th><th></th><th>what was tested</th><th>p</th></tr>"
        return (
            f"<div><p><b>{html.escape(self.verdict)}</b></p>"
            f"<table>{head}{''.join(rows)}</table>{notes}</div>"
        )


def _count(number: int) -> str:
    return f"{number} check{'' if number == 1 else 's'}"
