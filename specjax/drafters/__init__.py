"""Drafters, one kind a folder or a file, and the registry that names them.

Listing a kind here puts it under the exactness, coupling and state tests, and makes it known to
every script; what there is to know of it, its class of specs says (`spec.Spec`).
"""

from __future__ import annotations

from typing import Any

from specjax.drafters.base import Context, Drafter
from specjax.drafters.dflash import DFlash, DFlash2, DSpark
from specjax.drafters.eagle3 import Eagle3
from specjax.drafters.early_exit import EarlyExit
from specjax.drafters.lm import LM, LMDrafter
from specjax.drafters.medusa import Medusa, MedusaTree
from specjax.drafters.mtp import MTP
from specjax.drafters.ngram import NGram
from specjax.drafters.none import NoDraft
from specjax.drafters.registry import DRAFTERS, Entry, register_drafter
from specjax.drafters.spec import Spec

__all__ = [
    "DRAFTERS",
    "LM",
    "MTP",
    "Context",
    "DFlash",
    "DFlash2",
    "DSpark",
    "Drafter",
    "Eagle3",
    "EarlyExit",
    "Entry",
    "LMDrafter",
    "Medusa",
    "MedusaTree",
    "NGram",
    "NoDraft",
    "Spec",
    "make",
    "register_drafter",
]

register_drafter("none", NoDraft)
register_drafter("lm", LM)
register_drafter("dflash", DFlash)
register_drafter("eagle3", Eagle3)
register_drafter("medusa", Medusa)
register_drafter("medusa_tree", MedusaTree)
register_drafter("dflash2", DFlash2)
register_drafter("dspark", DSpark)
register_drafter("early_exit", EarlyExit)
register_drafter("mtp", MTP)
register_drafter("ngram", NGram)


def make(name: str, *, model: Any = None, num_draft: int | None = None) -> Any:
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
