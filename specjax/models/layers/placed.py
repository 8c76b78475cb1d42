"""What a module must know of the devices that its program is compiled for."""

from __future__ import annotations

from flax import nnx

from specjax.core.platform import Platform
from specjax.core.sharding import constrain
from specjax.core.types import Array


class Placed(nnx.Module):
    """A module that asks. `models.Frozen` tells all that it holds, whenever it puts them together.

    Modules that call operations of `core.ops`, or pin arrays to heads or vocabulary, are of this
    kind; one that only calls other modules need not be.
    """

    platform: Platform | None = None  # None: that of JAX's default devices
    replicated: bool = False  # on a mesh: each device holds and computes all of the model

    def constrain(self, x: Array, *axes: str | None) -> Array:
        """`core.sharding.constrain`, as this module lies."""
        return constrain(x, *axes, replicated=self.replicated)

    def axis(self, name: str) -> str | None:
        """The logical axis of heads or their like in what it remembers; None: it is not split."""
        return None if self.replicated else name


def place(module: nnx.Module, platform: Platform | None, replicated: bool) -> None:
    """Tells ``module`` and all that it holds."""
    for _, part in nnx.iter_modules(module):
        if isinstance(part, Placed) and (part.platform, part.replicated) != (platform, replicated):
            part.platform, part.replicated = platform, replicated
