"""Early exit: the target's first layers draft for it."""

from specjax.drafters.early_exit.drafter import EarlyExit, EarlyExitDrafter

__all__ = ["EarlyExit", "EarlyExitDrafter"]
