"""The family of a drafter's spec."""

from __future__ import annotations

from typing import Any

from specjax.core.family import Family
from specjax.drafters.lm import LM
from specjax.drafters.ngram import NGram
from specjax.drafters.none import NoDraft
from specjax.models.frozen import Frozen


def family_of(spec: Any) -> Family:
    """Where the guesses of ``spec`` come from."""
    for kind, family in ((NoDraft, Family.NONE), (NGram, Family.LOOKUP), (LM, Family.MODEL)):
        if isinstance(spec, kind):
            return family
    return Family.TRAINED if isinstance(getattr(spec, "net", None), Frozen) else Family.OWN
