"""DFlash and its variants: a block guessed in one parallel pass over states of the target."""

from specjax.drafters.dflash.dflash2 import DFlash2
from specjax.drafters.dflash.drafter import (
    DFlash,
    DFlashDrafter,
    default_taps,
    embed,
    fresh_config,
    fresh_net,
    head,
)
from specjax.drafters.dflash.dspark import DSpark

__all__ = [
    "DFlash",
    "DFlash2",
    "DFlashDrafter",
    "DSpark",
    "default_taps",
    "embed",
    "fresh_config",
    "fresh_net",
    "head",
]
