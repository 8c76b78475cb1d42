"""Drafters, one a file, and the registry that names them.

An entry of `DRAFTERS` makes a drafter from what was loaded (a draft model, a trained drafter, or
None) and the number of guesses. Listing a drafter here puts it under the exactness, coupling and
state tests; those that are trained say how a fresh one is made, for training and for the tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from specjax.drafters.base import Context, Drafter, Spec
from specjax.drafters.dflash import DFlash, DFlash2, DSpark
from specjax.drafters.eagle3 import Eagle3
from specjax.drafters.lm import LM, LMDrafter
from specjax.drafters.medusa import Medusa
from specjax.drafters.ngram import NGram
from specjax.drafters.none import NoDraft

__all__ = [
    "DRAFTERS",
    "LM",
    "Context",
    "DFlash",
    "DFlash2",
    "DSpark",
    "Drafter",
    "Eagle3",
    "LMDrafter",
    "Medusa",
    "NGram",
    "NoDraft",
    "Spec",
    "make",
]


@dataclasses.dataclass(frozen=True)
class Entry:
    """How to make a drafter by name."""

    make: Callable[[Any, int | None], Spec]  # (what was loaded or None, num_draft)
    needs_model: bool
    summary: str
    # (target, num_draft=, seed=, **sizes) -> a randomly initialised one; None: it is not trained,
    # or its draft is a model of its own.
    fresh: Callable[..., Any] | None = None


def _trained(spec: Any, summary: str) -> Entry:
    """A drafter whose spec is what `load_drafter` returns."""

    def make(loaded: Any, num_draft: int | None) -> Spec:
        if not isinstance(loaded, spec):
            kind = type(loaded).__name__
            raise ValueError(f"{summary} was asked for, but what was loaded is a {kind}.")
        return loaded if num_draft is None else dataclasses.replace(loaded, num_draft=num_draft)

    return Entry(make, True, summary, spec.fresh)


def _or_5(num_draft: int | None) -> int:
    return 5 if num_draft is None else num_draft


DRAFTERS: dict[str, Entry] = {
    "lm": Entry(lambda model, k: LM(model, _or_5(k)), True, "a smaller language model"),
    "dflash": _trained(DFlash, "a block guessed in one pass from the target's states"),
    "dflash2": _trained(DFlash2, "DFlash with convolutions and a candidate selector"),
    "dspark": _trained(DSpark, "DFlash with shifted slots and a Markov head"),
    "eagle3": _trained(Eagle3, "one layer over fused states of the target, step by step"),
    "medusa": _trained(Medusa, "a head a guess on the target's last state"),
    "ngram": Entry(lambda model, k: NGram(_or_5(k)), False, "prompt lookup in the text so far"),
    "none": Entry(lambda model, k: NoDraft(), False, "no guesses: plain decoding"),
}


def make(name: str, *, model: Any = None, num_draft: int | None = None) -> Spec:
    """The drafter of that name.

    Args:
      name: a key of `DRAFTERS`.
      model: the draft model (`specjax.load`) or trained drafter (`specjax.load_drafter`).
      num_draft: K; None: what it was trained for, else 5.

    Raises:
      ValueError: if there is none, or if it needs a draft and none, or another kind, is given.
    """
    if name not in DRAFTERS:
        raise ValueError(f"No drafter {name!r}; there are {', '.join(sorted(DRAFTERS))}.")
    entry = DRAFTERS[name]
    if entry.needs_model and model is None:
        raise ValueError(f"Drafter {name!r} needs a draft: give one (--draft).")
    return entry.make(model, num_draft)
