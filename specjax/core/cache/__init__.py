"""The memory of a model's layers: entries of every kind behind one `Cache`."""

from specjax.core.cache.base import Cache, Entry, Mark, caches_in, empty
from specjax.core.cache.block import Block, Part
from specjax.core.cache.full import Full
from specjax.core.cache.latent import Latent
from specjax.core.cache.recurrent import Recurrent
from specjax.core.cache.ring import Ring
from specjax.core.cache.rounded import Rounded, rounded

__all__ = [
    "Block",
    "Cache",
    "Entry",
    "Full",
    "Latent",
    "Mark",
    "Part",
    "Recurrent",
    "Ring",
    "Rounded",
    "caches_in",
    "empty",
    "rounded",
]
