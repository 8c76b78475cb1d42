"""The stream of states that the layers of a decoder add to.

On GPUs a sum and the norm that follows are one kernel of our own (`ops.add_norm`), across the
border of two layers as well. Layers are written as if there were none: ``x + y`` is not formed
until it is normed, or asked for.
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
    def value(self) -> Array:
        """The sum [B, T, D]."""
        if self._more is not None:
            self._x, self._more = self._x + self._more, None
        return self._x

    def __add__(self, more: Array) -> Residual:
        return Residual(self.value, self.platform, more)

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

    def __jax_array__(self) -> Array:
        return self.value

    def __getattr__(self, name: str) -> Any:
        """What arrays have: a family of one's own may do with ``x`` what it likes."""
        return getattr(self.value, name)


def residual(x: Array, platform: Platform | None) -> Any:
    """The stream that begins with ``x`` [B, T, D]: where sums are formed at once, ``x`` itself."""
    return Residual(x, platform) if adds_at_once(platform) else x


def mapped(function: Callable[[Array], Array], x: Any) -> Any:
    """A stream with ``function``, that of a sum the sum of its results, of what was added last."""
    if not isinstance(x, Residual):
        return function(x)
    return x.mapped(function)


def value_of(x: Any) -> Array:
    """The states of a stream."""
    return x.value if isinstance(x, Residual) else x
