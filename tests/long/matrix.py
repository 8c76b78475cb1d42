"""What the matrix of drafters and families keeps while it runs, and the tables it ends in."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from specjax.runs import lines

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "family_matrix.jsonl"
PAGE = ROOT / "build" / "family_matrix.md"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One drafter on one family."""

    family: str
    drafter: str
    refused: str = ""  # in one line, why there is none; "": there is
    tau: float = 0.0  # of four texts, greedy and sampled, equal to plain decoding's
    loss: tuple[float, float] | None = None  # of a trained drafter: before and after a few steps


@functools.cache
def sources() -> str:
    """The digest of all that a cell depends on: a change makes every cell anew."""
    found = hashlib.sha256()
    for path in sorted([*ROOT.glob("specjax/**/*.py"), *ROOT.glob("tests/*.py")]):
        found.update(path.read_bytes())
    found.update((ROOT / "tests" / "long" / "test_family_matrix.py").read_bytes())
    return found.hexdigest()


def known() -> dict[tuple[str, str], Cell]:
    """The cells that are done, by these very sources."""
    records = [r for r in lines.read(KEPT) if r.pop("sources") == sources()]
    loss = lambda record: None if record["loss"] is None else tuple(record["loss"])
    cells = [Cell(**{**record, "loss": loss(record)}) for record in records]
    return {(c.family, c.drafter): c for c in cells}


def keep(cell: Cell) -> None:
    KEPT.parent.mkdir(exist_ok=True)
    record = {**dataclasses.asdict(cell), "sources": sources()}
    lines.append(KEPT, json.loads(json.dumps(record)))


def write(families: Sequence[str], names: Sequence[str]) -> None:
    """The tables of the cells that are done: tau, losses, and what is refused."""
    cells = known()

    def table(
        shown: Callable[[Cell], str], columns: Sequence[str], families: Sequence[str]
    ) -> list[str]:
        made = ["| | " + " | ".join(f"`{n}`" for n in columns) + " |"]
        made.append("| --- |" + " --- |" * len(columns))
        for family in families:
            row = [cells.get((family, name)) for name in columns]
            told = ("" if cell is None else shown(cell) for cell in row)
            made.append(f"| `{family}` | " + " | ".join(told) + " |")
        return made

    tau = table(lambda c: "refused" if c.refused else f"{c.tau:.2f}", names, families)
    trained = [n for n in names if any(c.loss for c in cells.values() if c.drafter == n)]
    told = lambda c: "" if c.loss is None else f"{c.loss[0]:.2f} → {c.loss[1]:.2f}"
    learnt = [f for f in families if any(c.loss for c in cells.values() if c.family == f)]
    loss = table(told, trained, learnt)
    refused = [f"* `{c.drafter}` on `{c.family}`: {c.refused}" for c in cells.values() if c.refused]
    PAGE.write_text("\n".join([*tau, "", *loss, "", *refused]) + "\n")
