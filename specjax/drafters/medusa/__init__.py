"""Medusa: a head a guess on the target's last state."""

from specjax.drafters.medusa.drafter import Medusa, MedusaDrafter
from specjax.drafters.medusa.tree import MedusaTree, MedusaTreeDrafter

__all__ = ["Medusa", "MedusaDrafter", "MedusaTree", "MedusaTreeDrafter"]
