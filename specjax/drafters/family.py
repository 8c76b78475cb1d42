"""The family of a drafter's spec."""

from __future__ import annotations

from specjax.core.family import Family
from specjax.drafters.spec import Spec, ask


def family_of(spec: Spec) -> Family:
    """Where the guesses of ``spec`` come from."""
    said = ask(spec, "family")
    if isinstance(said, Family):
        return said
    return Family.OWN if ask(spec, "own_net")() is None else Family.TRAINED
