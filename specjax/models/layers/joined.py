"""Layers that multiply one input by several matrices, each by itself or all of them at once.

A pass over few tokens takes as long as reading its weights, and one large matrix is read faster
than several small ones. So what decodes has them joined (`models.joining`), and whatever trains,
or looks at matrices by the names of checkpoints, has each by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from flax import nnx

from specjax.core.ops import Unnormed, gated, linear, norm_product
from specjax.core.sharding import axes_of
from specjax.core.types import Array
from specjax.models.joint import Joint, steps
from specjax.models.layers.linear import Adapted, Linear
from specjax.models.layers.placed import Placed
from specjax.models.layers.residual import Normed, formed


class Multiplied(NamedTuple):
    """What several matrices made of one input."""

    parts: tuple[Array, ...]  # [..., out] of each
    whole: Array | None = None  # [..., all of them], as a `Joint` of so many ``blocks`` lays them
    blocks: int = 1


class Joined(Placed):
    """`Linear` layers of one input as one. Its parameters know their parts (``joint``)."""

    def __init__(self, parts: Mapping[str, Linear], blocks: int, *, copied: bool = False):
        first, *_ = parts.values()
        sizes = tuple(part.weight.shape[0] for part in parts.values())
        axes = tuple(axes_of(part.weight)[0] for part in parts.values())
        self.joint = Joint(tuple(parts), sizes, axes, blocks, copied)
        self.has_bias = first.has_bias
        self.weight = self._join([part.weight for part in parts.values()])
        if self.has_bias:
            self.bias = self._join([part.bias for part in parts.values()])

    def _join(self, params: list[Any]) -> nnx.Param[Any]:
        value = self.joint.join([param.get_value() for param in params])
        return nnx.Param(value, axes=axes_of(params[0]), joint=self.joint)

    def __call__(self, x: Array | Normed) -> tuple[Array, ...]:
        """[..., in] -> what each part makes of it, [..., out] in the type of ``x``."""
        given: Any = self.weight.get_value()
        if not isinstance(given, Adapted):
            return self.joint.split(self.whole(x), axis=-1)
        x = formed(x)
        sides: list[Adapted] = []
        while isinstance(given, Adapted):
            sides, given = [*sides, given], given.weight
        bias = self.bias[...] if self.has_bias else None
        y = linear(x, given, bias, platform=self.platform)
        added = [(side.part, side.side(x, self.platform)) for side in sides]
        y = y + sum(more for part, more in added if part is None)
        parts = list(self.joint.split(y, axis=-1))
        for part, more in added:
            if part is not None:
                parts[part] = parts[part] + more
        return tuple(part.astype(x.dtype) for part in parts)

    def multiplied(self, x: Array | Normed) -> Multiplied:
        """The same, and all of it as one array where no part has a side path."""
        if isinstance(self.weight.get_value(), Adapted):
            return Multiplied(self(x))
        y = self.whole(x)
        return Multiplied(self.joint.split(y, axis=-1), y, self.joint.blocks)

    def whole(self, x: Array | Normed) -> Array:
        """[..., in] -> what all parts make of it, as their rows lie, in the type of ``x``."""
        bias = self.bias[...] if self.has_bias else None
        if bias is None and (states := self._unnormed(x)) is not None:
            return norm_product(states, self.weight.get_value(), platform=self.platform)
        x = formed(x)
        return linear(x, self.weight.get_value(), bias, platform=self.platform, dtype=x.dtype)

    def _unnormed(self, x: Array | Normed) -> Unnormed | None:
        """The states, where a product with the plain weight may norm them."""
        if not isinstance(x, Normed) or isinstance(self.weight.get_value(), Adapted):
            return None
        return x.unformed

    def gated_product(self, x: Array | Normed, act: Callable[[Array], Array]) -> Array:
        """``act(first part) * second part`` of what is made of ``x``."""
        weight, halves = self.weight.get_value(), self.joint.blocks == 1 and not self.has_bias
        if not halves or isinstance(weight, Adapted):
            gate, up = self(x)
            return act(gate) * up
        if (states := self._unnormed(x)) is not None:
            return norm_product(states, weight, act, platform=self.platform)
        return gated(formed(x), weight, act, platform=self.platform)

    def parts(self) -> dict[str, Linear]:
        """The layers that it was made of."""
        weights = self.joint.split(self.weight.get_value())
        biases = self.joint.split(self.bias.get_value()) if self.has_bias else weights
        return {
            name: Linear.holding(weight, bias if self.has_bias else None, axes=(axis, None))
            for name, axis, weight, bias in zip(
                self.joint.names, self.joint.axes, weights, biases, strict=True
            )
        }


class Joining(nnx.Module):
    """A layer with such matrices.

    ``joints`` names what may be joined: an attribute for the whole, and those of the parts. A
    subclass that calls the parts by name has none, unless it says so itself.

    ``copies`` as well, of parts that layers below it have, each in a pass of its own too: by their
    dotted paths. There they stay.
    """

    joints: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @property
    def copies(self) -> Mapping[str, tuple[str, ...]]:
        return {}

    def is_joined(self, whole: str) -> bool:
        return hasattr(self, whole)

    def joined(self, whole: str) -> Joined | None:
        """The layer that all parts of ``whole`` are; None: each is by itself."""
        found: Joined | None = getattr(self, whole, None)
        return found

    def multiplied(self, whole: str, x: Array | Normed) -> Multiplied:
        """What each of the parts of ``whole`` makes of ``x``, and all of it if it is one array."""
        layer = self.joined(whole)
        return Multiplied(self.products(whole, x)) if layer is None else layer.multiplied(x)

    def gated_product(self, whole: str, x: Array | Normed, act: Callable[[Array], Array]) -> Array:
        """``act(gate) * up`` of what the two parts of ``whole`` make of ``x``."""
        layer = self.joined(whole)
        if layer is not None:
            return layer.gated_product(x, act)
        gate, up = self.products(whole, x)
        return act(gate) * up

    def products(self, whole: str, x: Array | Normed) -> tuple[Array, ...]:
        """What each of the parts of ``whole`` makes of ``x``."""
        if self.is_joined(whole):
            together: tuple[Array, ...] = getattr(self, whole)(x)
            return together
        x = formed(x)
        return tuple(getattr(self, part)(x) for part in type(self).joints[whole])


def renew_copies(module: nnx.Module) -> None:
    """Makes the copies in ``module`` of what their parts are now."""
    for _, layer in list(nnx.iter_modules(module)):
        if isinstance(layer, Joining):
            for whole, names in layer.copies.items():
                if (old := layer.joined(whole)) is not None:
                    parts = {name: _part(layer, name) for name in names}
                    setattr(layer, whole, Joined(parts, old.joint.blocks, copied=True))


def _part(layer: Any, path: str) -> Linear:
    """The layer at a dotted path, which may have become part of one beside it."""
    *above, name = steps(path)
    for step in above:
        layer = layer[step] if isinstance(step, int) else getattr(layer, step)
    if hasattr(layer, name):
        found: Linear = getattr(layer, name)
        return found
    whole = next(whole for whole, names in type(layer).joints.items() if name in names)
    return layer.joined(whole).parts()[name]  # type: ignore[no-any-return]
