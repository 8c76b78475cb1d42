"""What to try against a limit, by where a drafter's guesses come from.

Prompt lookup has learnt nothing and reads nothing, so that training and misreading cannot be what
is wrong with it; a user's own method was not loaded from a checkpoint.
"""

from __future__ import annotations

from specjax.core.family import Family

TAU_NEAR_1 = 1.5


def against_draft(family: Family, calls: int) -> list[str]:
    """Where drafting costs too much; ``calls`` passes follow each other."""
    block = "a drafter that guesses a block in one pass (dflash, medusa), or prompt lookup (ngram)"
    if family is Family.LOOKUP:
        return ["a smaller max_ngram: each length is compared with the whole text"]
    if family is Family.TRAINED:
        smaller = "a smaller drafter (fewer layers, a reduced vocabulary)"
        return [smaller, block] if calls > 1 else [smaller]
    if family is Family.MODEL:
        return [
            "a smaller draft, or one with fewer layers: depth costs more than width here",
            block,
        ]
    few = "fewer passes behind each other: depth costs more than width here"
    return [few, block] if calls > 1 else ["less work in propose and update: see a profile"]


def against_rejection(family: Family, near_1: bool) -> list[str]:
    """Where too few guesses are accepted; ``near_1``: hardly any."""
    check = "specjax.check_drafter: a tau near 1 mostly means a drafter that is misread"
    if family is Family.LOOKUP:
        return [
            "texts that repeat their prompt or themselves (edits, summaries, code): prompt lookup "
            "guesses nothing else",
            "a drafter that knows the target (dflash, eagle3, medusa, lm) where texts do not",
        ]
    if family is Family.TRAINED:
        longer = "a drafter trained longer, on responses of this very target (regenerate)"
        return [check, longer] if near_1 else [longer]
    if family is Family.MODEL:
        distilled = "a draft distilled from this very target (train_distill), or a larger one"
        other = "specjax.check_drafter: a tau near 1 mostly means a draft of another kind of text"
        return [other, distilled] if near_1 else [distilled]
    state = (
        "specjax.audit: a tau near 1 may come of a state that went wrong, which no text can show"
    )
    return [state] if near_1 else ["guesses that agree more often with the target's own law"]


def near_1(family: Family, tau: float) -> str:
    """A sentence about a tau that hardly exceeds 1."""
    if family is Family.LOOKUP:
        return f"tau is {tau:.2f}, near 1: these texts hardly repeat their prompt or themselves."
    return f"tau is {tau:.2f}, near 1: specjax.check_drafter looks for the reason."
