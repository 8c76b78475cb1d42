"""Drafters, one a file, and the registry that names them.

An entry of `DRAFTERS` makes a drafter from the draft model (or None), the number of guesses and
nothing else; it says whether it needs a draft model. Listing a drafter here puts it under the
exactness, coupling and state tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from specjax.drafters.base import Context, Drafter, Spec
from specjax.drafters.lm import LM, LMDrafter
from specjax.drafters.ngram import NGram
from specjax.drafters.none import NoDraft

__all__ = [
    "DRAFTERS",
    "LM",
    "Context",
    "Drafter",
    "LMDrafter",
    "NGram",
    "NoDraft",
    "Spec",
    "make",
]


@dataclasses.dataclass(frozen=True)
class Entry:
    """How to make a drafter by name."""

    make: Callable[[Any, int], Spec]  # (draft model or None, num_draft)
    needs_model: bool
    summary: str


DRAFTERS: dict[str, Entry] = {
    "lm": Entry(lambda model, k: LM(model, k), True, "a smaller language model (--draft)"),
    "ngram": Entry(lambda model, k: NGram(k), False, "prompt lookup in the text so far"),
    "none": Entry(lambda model, k: NoDraft(), False, "no guesses: plain decoding"),
}


def make(name: str, *, model: Any = None, num_draft: int = 5) -> Spec:
    """The drafter of that name.

    Raises:
      ValueError: if there is none, or if it needs a draft model and none is given.
    """
    if name not in DRAFTERS:
        raise ValueError(f"No drafter {name!r}; there are {', '.join(sorted(DRAFTERS))}.")
    entry = DRAFTERS[name]
    if entry.needs_model and model is None:
        raise ValueError(f"Drafter {name!r} needs a draft model: give one (--draft).")
    return entry.make(model, num_draft)
