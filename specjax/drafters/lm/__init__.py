"""A smaller language model that guesses step by step."""

from specjax.drafters.lm.drafter import LM, LMDrafter

__all__ = ["LM", "LMDrafter"]
