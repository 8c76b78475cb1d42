"""Matrices that stay as a checkpoint packs them: their arrays, found as their values would be.

A place (`models.places`) cuts, turns and stacks whole tensors; what a tensor is packed into has the
same axes, so that the same place finds each of the arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from specjax.core.quantised import Quantised, axes_of, num_bytes
from specjax.core.tensors import Made, Pieces, Tensor
from specjax.models.places import Place

# The first pattern, without its sign, that is no finite number.
_HIGHEST = {np.dtype(jnp.float8_e4m3fn): 127, np.dtype(jnp.float8_e5m2): 124}


@dataclasses.dataclass(frozen=True)
class Kept:
    """The arrays of a parameter [.., O, I], not read yet."""

    values: Tensor  # [.., O, I]
    factors: Tensor  # [.., O, G]
    zeros: Tensor | None

    def fits(self, placed: NamedSharding | None) -> bool:
        """Whether each device can have its own columns."""
        axis = None if placed is None or not placed.spec else placed.spec[-1]
        shards = 1 if placed is None or axis is None else placed.mesh.shape[axis]
        groups, width = self.factors.shape[-1], self.values.shape[-1]
        return width % shards == 0 and (groups == 1 or groups % shards == 0)

    def num_bytes(self, placed: NamedSharding | None) -> int:
        """Of a device's share."""
        total = 0
        for tensor, place in self._placements(placed).values():
            shape = tensor.shape if place is None else place.shard_shape(tensor.shape)
            total += num_bytes(shape, tensor.dtype)
        return total

    def load(
        self,
        begin: Callable[[Tensor, np.dtype, NamedSharding | None], Callable[[], jax.Array]],
        dtype: np.dtype,
        placed: NamedSharding | None,
    ) -> Callable[[], Quantised]:
        """Reads its arrays, each as ``begin`` begins; what is returned waits for them.

        ``placed``: where the parameter belongs.
        """
        arrays = self._placements(placed).items()
        ends: Any = {name: begin(tensor, tensor.dtype, at) for name, (tensor, at) in arrays}
        return lambda: Quantised(**{name: end() for name, end in ends.items()}, dtype=dtype)

    def outline(self, dtype: np.dtype, placed: NamedSharding | None) -> Quantised:
        """The same with shapes in the place of arrays."""
        shaped: Any = {
            name: jax.ShapeDtypeStruct(tensor.shape, tensor.dtype, sharding=at)
            for name, (tensor, at) in self._placements(placed).items()
        }
        return Quantised(**shaped, dtype=dtype)

    def _placements(
        self, placed: NamedSharding | None
    ) -> dict[str, tuple[Tensor, NamedSharding | None]]:
        """Each array with its place."""
        arrays = {"values": self.values, "factors": self.factors}
        if self.zeros is not None:
            arrays["zeros"] = self.zeros
        if placed is None:
            return {name: (tensor, None) for name, tensor in arrays.items()}
        axes = tuple(placed.spec) + (None,) * (len(self.values.shape) - len(placed.spec))
        found = axes_of(axes, self.factors.shape[-1], self.zeros is not None)
        mesh = placed.mesh
        return {n: (arrays[n], NamedSharding(mesh, PartitionSpec(*a))) for n, a in found.items()}


def bind(place: Place, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Kept | None:
    """The parameter of that shape in its packed form; None where it has none that can be kept."""
    parts = {name: tensors[name].pieces for name in place.names}
    first = next(iter(parts.values()))
    if first is None or len(shape) < 2:
        return None
    known: dict[str, Pieces] = {}
    for name, part in parts.items():
        if part is None or _kinds(part) != _kinds(first):
            return None
        known[name] = part

    def found(take: Callable[[str], Tensor]) -> Tensor:
        return place.bind({name: take(name) for name in known})

    try:
        columns = found(lambda name: _columns(tensors[name].shape, known[name].axis))
        values = found(lambda name: known[name].values)
        factors = found(lambda name: known[name].factors)
        zeros = None if first.zeros is None else found(lambda name: _zeros(known[name]))
    except ValueError:
        return None  # such as groups that do not fall into the parts of a tensor
    row = columns.read()[(*[slice(0, 1)] * (len(shape) - 1), slice(None))].reshape(-1)
    fits = (
        np.array_equal(row, np.arange(shape[-1]))
        and values.shape == shape
        and factors.shape[:-1] == shape[:-1]
        and shape[-1] % factors.shape[-1] == 0
    )
    return Kept(values, factors, zeros) if fits else None


def _columns(shape: tuple[int, ...], axis: int) -> Tensor:
    """A tensor that says of each number where it lies along ``axis``."""

    def make(index: tuple[slice, ...]) -> np.ndarray:
        sizes = [len(range(s.start, s.stop, s.step)) for s in index]
        there, along = index[axis], [1] * len(shape)
        along[axis] = -1
        numbers = np.arange(there.start, there.stop, there.step).reshape(along)
        return np.broadcast_to(numbers, sizes)

    return Made(shape, make).as_tensor(np.dtype(np.int64))


def _kinds(part: Pieces) -> tuple[Any, ...]:
    return part.values.dtype, part.factors.dtype, part.zeros is None


def _zeros(part: Pieces) -> Tensor:
    assert part.zeros is not None
    return part.zeros


def finite(array: np.ndarray) -> bool:
    """No NaN or infinity among numbers of a byte or less, of which some types have neither."""
    if array.dtype not in _HIGHEST:
        return True
    return bool(((array.view(np.uint8) & np.uint8(127)) < _HIGHEST[array.dtype]).all())
