"""The stream of states that the layers of a decoder add to.

On GPUs a sum and the norm that follows are one kernel of our own (`ops.add_norm`), across the
border of two layers as well. Layers are written as if there were none: ``x + y`` is formed when it
is normed, or asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specjax.core.ops import Norm, add_norm, adds_at_once
from specjax.core.platform import Platform
from specjax.core.types import Array


class Residual:
    """States [B, T, D], and what is to be added to them. It lives while a pass is traced."""

    def __init__(self, x: Array, platform: Platform | None, more: Array | None = None):
        self._x, self._more, self.platform = x, more, platform

    @property
    def states(self) -> Array:
        """The sum [B, T, D]."""
        if self._more is not None:
            self._x, self._more = self._x + self._more, None
        return self._x

    def __add__(self, more: Array) -> Residual:
        return Residual(self.states, self.platform, more)

    def normed(self, weight: Array, norm: Norm) -> Array:
        """What ``norm`` makes of the sum; from now on that is known, too."""
        given, self._more = (self._x, self._more), None
        self._x, found = add_norm(*given, weight, norm, platform=self.platform)
        return found

    def mapped(self, function: Callable[[Array], Array]) -> Residual:
        """See `mapped`."""
        if self._more is None:
            return Residual(function(self._x), self.platform)
        return Residual(self._x, self.platform, function(self._more))


def takes_residual(*norms: str) -> Callable[[Any], Any]:
    """Marks the ``__call__`` of a layer that does nothing with its states but norm and add.

    ``norms``: the attributes that norm them. A layer one of whose norms is not marked so itself, as
    one that has a ``__call__`` of its own, is given arrays; so is a subclass with its own.
    """

    def marked(call: Any) -> Any:
        call.norms_of_residual = norms
        return call

    return marked


def takes(layer: Any) -> bool:
    """Whether a layer or a norm knows what to do with a `Residual`."""
    norms = getattr(type(layer).__call__, "norms_of_residual", None)
    return norms is not None and all(takes(getattr(layer, n)) for n in norms if hasattr(layer, n))


def given_to(layer: Any, x: Any, platform: Platform | None) -> Any:
    """The states ``x`` [B, T, D] as ``layer``, or a norm, takes them, on a platform."""
    if not takes(layer):
        return states_of(x)
    at_once = adds_at_once(platform) and not isinstance(x, Residual)
    return Residual(x, platform) if at_once else x


def mapped(function: Callable[[Array], Array], x: Any) -> Any:
    """``function`` of states; of a sum, where it is that of the parts, of what was added last."""
    return x.mapped(function) if isinstance(x, Residual) else function(x)


def states_of(x: Any) -> Array:
    """The states, as an array."""
    return x.states if isinstance(x, Residual) else x
