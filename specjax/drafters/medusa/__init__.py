"""Medusa: a head a guess on the target's last state."""

from specjax.drafters.medusa.drafter import Medusa, MedusaDrafter

__all__ = ["Medusa", "MedusaDrafter"]
