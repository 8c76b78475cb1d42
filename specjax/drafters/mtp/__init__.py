"""MTP: the target's own head for further tokens, one after another."""

from specjax.drafters.mtp.drafter import MTP, MTPDrafter

__all__ = ["MTP", "MTPDrafter"]
