"""What a trace was made with, by name: `Trace.setup` has it as the JSON values of a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Recording:
    """What is known of a recording, a trace with guesses at every position (`trace.replay`)."""

    exact_k: Sequence[int] = ()  # the k for which replay is exact
    beyond: Sequence[Sequence[int]] = ()  # what the target would say behind each text's end


@dataclasses.dataclass(frozen=True)
class Setup:
    """None, or what is usual, where a trace does not tell."""

    target: str | None = None
    drafter: str | None = None
    prompt_set: str = ""
    family: str | None = None
    rule: str | None = None
    lossless: bool = True  # of the rule
    kind: str | None = None  # how guesses are drawn
    num_draft: int | None = None
    min_confidence: float | None = None
    widths: Sequence[int] = ()  # of cycles, where they are not all alike
    parents: Sequence[int] | None = None  # of a tree of guesses
    batch: int | None = None
    in_turn: bool = False  # rows are requests that followed one another in those of the batch
    options: Any = None  # those of all rows, or a list of each row's
    dtype: str = ""
    device: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    recording: Recording | None = None

    @classmethod
    def of(cls, setup: Mapping[str, Any]) -> Setup:
        """Reads the JSON values of a trace's setup."""
        names = {f.name for f in dataclasses.fields(cls)} & setup.keys()
        found = {name: setup[name] for name in names}
        if details := found.pop("recording", None):
            found["recording"] = Recording(details["exact_k"], details["beyond"])
        return cls(**found)

    @property
    def temperature(self) -> float | None:
        """None where rows have options of their own, too."""
        return self.options.get("temperature") if isinstance(self.options, Mapping) else None
