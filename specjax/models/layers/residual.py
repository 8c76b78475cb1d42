"""The stream of states that the layers of a decoder add to.

Layers are written as if it were an array: norm, product, ``x + y``. On GPUs the stream forms a sum
where it is normed or asked for, as both are one kernel of our own (`ops.add_norm`), across the
border of two layers as well. With products of our own a norm is formed by the product behind it
(`Normed`), and a sum by the product in front of it (`Product`), if all that a layer does with them
is marked so (`takes_residual`, `takes_normed`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax.numpy as jnp

from specjax.core.ops import (
    Norm,
    Unnormed,
    add_norm,
    adds_at_once,
    norms_in_products,
)
from specjax.core.platform import Platform
from specjax.core.types import Array
from specjax.models.layers.linear import Linear

_Call = TypeVar("_Call", bound=Callable[..., Any])


class Residual:
    """States [B, T, D], and what is to be added to them. It lives while a pass is traced."""

    def __init__(
        self,
        x: Array,
        platform: Platform | None,
        more: Array | None = None,
        *,
        squares: Array | None = None,
        defers: bool = False,
    ):
        """``squares`` as of `ops.add_product`; ``defers``: its norms are `Normed`."""
        self._x, self._more, self.platform = x, more, platform
        self._squares, self.defers = squares, defers

    @property
    def states(self) -> Array:
        """The sum [B, T, D]."""
        if self._more is not None:
            self._x, self._more = self._x + self._more, None
        return self._x

    def __add__(self, more: Array | Product) -> Residual:
        if not isinstance(more, Product):
            return Residual(self.states, self.platform, more, defers=self.defers)
        found = more.added_to(self.states)
        if found is None:
            return self + more.formed
        total, squares = found
        return Residual(total, self.platform, squares=squares, defers=self.defers)

    def normed(self, weight: Array, norm: Norm) -> Array | Normed:
        """What ``norm`` makes of the sum; from now on that is known, too."""
        if self.defers and self._squares is not None:
            return Normed(Unnormed(self._x, self._squares, weight, norm), self.platform)
        given, self._more = (self._x, self._more), None
        self._x, found = add_norm(*given, weight, norm, platform=self.platform)
        return Normed(found, self.platform) if self.defers else found

    def pin(self, where: Callable[[Array], Array]) -> Residual:
        """See `pin`."""
        kept: dict[str, Any] = {"squares": self._squares, "defers": self.defers}
        if self._more is not None:
            return Residual(self._x, self.platform, where(self._more), **kept)
        return Residual(where(self._x), self.platform, **kept)

    def read_by(self, layer: Any) -> Residual:
        """The same; from now on its norms are `Normed` if ``layer`` takes those, else arrays."""
        self.defers = _defers(layer, self.platform)
        return self


class Normed:
    """What a norm makes of a stream's states, or will: a product may do so by itself."""

    def __init__(self, given: Array | Unnormed, platform: Platform | None):
        self._given, self.platform = given, platform

    @property
    def unformed(self) -> Unnormed | None:
        """The states; None: the norm is formed."""
        return self._given if isinstance(self._given, Unnormed) else None

    @property
    def formed(self) -> Array:
        """The norm [B, T, D]."""
        if isinstance(self._given, Unnormed):
            self._given = self._given.formed(self.platform)
        return self._given


class Product:
    """``layer(y)``, to be added to a stream: then one kernel may do both."""

    def __init__(self, layer: Linear, y: Array):
        self._layer, self._y = layer, y

    def added_to(self, x: Array) -> tuple[Array, Array] | None:
        """The sum with ``x`` and its squares (`ops.add_product`); None: not in one kernel."""
        return self._layer.added_to(x, self._y)

    @property
    def formed(self) -> Array:
        """[B, T, D]."""
        return self._layer(self._y)

    def __radd__(self, x: Array) -> Array:
        return x + self.formed


def formed(x: Any) -> Array:
    """A norm or a product as an array, if it is not one."""
    return x.formed if isinstance(x, Normed | Product) else x


def side_by_side(*norms: Any) -> Any:
    """Norms behind one another in their last axis, formed; `Normed` if one of them is."""
    whole = jnp.concatenate([formed(x) for x in norms], axis=-1)
    deferred = [x for x in norms if isinstance(x, Normed)]
    return Normed(whole, deferred[0].platform) if deferred else whole


def projected(fed: Any, layer: Any, y: Array) -> Array:
    """``layer(y)``, of y that was made of ``fed``; of a `Normed` a `Product`, whose stream adds.

    A layer that is no `Linear`, or calls otherwise than one, is called.
    """
    known = isinstance(fed, Normed) and type(layer).__call__ is Linear.__call__
    found: Any = Product(layer, y) if known else layer(y)
    return found  # type: ignore[no-any-return]


def takes_residual(*norms: str, into: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """Marks the ``__call__`` of a layer that does nothing with its states but norm and add.

    ``norms``: the attributes that norm them. A layer one of whose norms is not marked so itself, as
    one that has a ``__call__`` of its own, is given arrays; so is a subclass with its own.

    ``into``: the attributes, or methods of such, "self_attn.block", that norms are handed to and
    nothing else is, if what they return is added to the states and nothing else is done with it.
    Where one is not marked `takes_normed` it is given arrays, as are the others.
    """

    def marked(call: Any) -> Any:
        call.norms_of_residual, call.readers_of_norms = norms, into
        return call

    return marked


def takes_normed(call: _Call) -> _Call:
    """Marks a method whose states may be `Normed`, and which then may return a `Product`."""
    call.takes_normed = True  # type: ignore[attr-defined]
    return call


def takes(layer: Any) -> bool:
    """Whether a layer or a norm knows what to do with a `Residual`."""
    norms = getattr(type(layer).__call__, "norms_of_residual", None)
    return norms is not None and all(takes(getattr(layer, n)) for n in norms if hasattr(layer, n))


def _defers(layer: Any, platform: Platform | None) -> bool:
    """Whether its norms go into products of our own, and those are added, and nothing else."""
    readers = getattr(type(layer).__call__, "readers_of_norms", ())

    def marked(reader: str) -> bool:
        name, _, method = reader.partition(".")
        call = getattr(type(getattr(layer, name, None)), method or "__call__", None)
        return getattr(call, "takes_normed", False)

    return bool(readers) and norms_in_products(platform) and all(map(marked, readers))


def given_to(layer: Any, x: Any, platform: Platform | None) -> Any:
    """The states ``x`` [B, T, D] as ``layer``, or a norm, takes them, on a platform."""
    if not takes(layer):
        return states_of(x)
    if isinstance(x, Residual):
        return x.read_by(layer)
    at_once = adds_at_once(platform)
    return Residual(x, platform, defers=_defers(layer, platform)) if at_once else x


def pin(where: Callable[[Array], Array], x: Any) -> Any:
    """``where`` of states, which says where they lie; of a sum, of what was added last."""
    return x.pin(where) if isinstance(x, Residual) else where(x)


def states_of(x: Any) -> Array:
    """The states, as an array."""
    return x.states if isinstance(x, Residual) else x
