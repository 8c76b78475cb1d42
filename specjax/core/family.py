"""Where a drafter's guesses come from: what advice about it can be about."""

from __future__ import annotations

import enum


class Family(enum.StrEnum):
    """The kinds of drafters that are told apart."""

    TRAINED = "trained"  # a network made for one target, with what it reads of it
    MODEL = "model"  # a smaller language model
    LOOKUP = "lookup"  # the text itself: nothing is learnt, and nothing read from a checkpoint
    OWN = "own"  # a method of the user's, or one that is not known
    NONE = "none"  # plain decoding


def parse_family(name: object, drafter: str = "") -> Family:
    """Reads a file's family, or takes it from the drafter's name where the file has none."""
    if isinstance(name, str) and name in set(Family):
        return Family(name)
    known = {"ngram": Family.LOOKUP, "none": Family.NONE, "lm": Family.MODEL}
    return known.get(drafter, Family.OWN)
