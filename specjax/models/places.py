"""Where a parameter lies in a checkpoint: which tensors hold it, and what is done with them.

A family names a place for each of its parameters (`Decoder.place_of`). Loading reads through it, a
box of the parameter at a time, so that a device of a mesh gets its share and nothing else; export
writes through it, the other way. A place is made of these:

    Whole(name)                     the tensor itself
    Part(name, axis, 0, 2)          the first of two halves, or with ``strided`` every second row
    Turned(place)                   the last two axes exchanged
    Stacked(places)                 one behind the other, on a new first axis
    Joined(places, joint)           rows of all of them, behind one another in each device's share
    FirstOf(places)                 the first whose tensors are all there; written as the first

What is packed in the file (8, 4 bits) is unpacked beneath: names and shapes here are those of plain
numbers (`checkpoint.packed`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping
from typing import Protocol

import numpy as np

from specjax.core.tensors import Index, Made, Tensor, fill
from specjax.models.joint import Joint

# (tensor, its shape, the box of it, the values there)
Piece = tuple[str, tuple[int, ...], Index, np.ndarray]


class Place(Protocol):
    """Of one parameter."""

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that it is read from."""
        ...

    def among(self, names: Container[str]) -> Place:
        """The place in a checkpoint that has tensors of these names."""
        ...

    def bind(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The parameter, not read yet. Raises ValueError where shapes do not fit together."""
        ...

    def write(self, value: np.ndarray) -> Iterator[Piece]:
        """What the tensors hold of it."""
        ...


@dataclasses.dataclass(frozen=True)
class Whole:
    """A tensor as it is."""

    name: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def among(self, names: Container[str]) -> Place:
        return self

    def bind(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors[self.name]

    def write(self, value: np.ndarray) -> Iterator[Piece]:
        yield self.name, value.shape, (), value

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Part:
    """Part ``number`` of ``of`` equal ones along an axis: a block of it, or every ``of``-th row."""

    name: str
    axis: int
    number: int
    of: int
    strided: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def among(self, names: Container[str]) -> Place:
        return self

    def _rows(self, size: int) -> range:
        """Those of a tensor that has ``size``."""
        if self.strided:
            return range(self.number, size, self.of)
        share = size // self.of
        return range(self.number * share, (self.number + 1) * share)

    def bind(self, tensors: Mapping[str, Tensor]) -> Tensor:
        tensor, axis = tensors[self.name], self.axis
        if len(tensor.shape) <= axis or tensor.shape[axis] % self.of:
            raise ValueError(
                f"{self.name} {list(tensor.shape)} does not fall into {self.of} parts along axis "
                f"{axis}."
            )
        rows = self._rows(tensor.shape[axis])
        shape = (*tensor.shape[:axis], len(rows), *tensor.shape[axis + 1 :])

        def make(index: Index) -> np.ndarray:
            asked = rows[index[axis]]
            chosen = slice(asked.start, asked.stop, asked.step)
            return tensor.read()[(*index[:axis], chosen, *index[axis + 1 :])]

        return Made(shape, make).as_tensor(tensor.dtype)

    def write(self, value: np.ndarray) -> Iterator[Piece]:
        shape = list(value.shape)
        shape[self.axis] *= self.of
        rows = self._rows(shape[self.axis])
        chosen = slice(rows.start, rows.stop, rows.step)
        yield self.name, tuple(shape), (*[slice(None)] * self.axis, chosen), value

    def __str__(self) -> str:
        return f"part {self.number + 1} of {self.of} of {self.name}"


@dataclasses.dataclass(frozen=True)
class Turned:
    """A place with its last two axes exchanged: [.., in, out] for [.., out, in]."""

    place: Place

    @property
    def names(self) -> tuple[str, ...]:
        return self.place.names

    def among(self, names: Container[str]) -> Place:
        return Turned(self.place.among(names))

    def bind(self, tensors: Mapping[str, Tensor]) -> Tensor:
        tensor = self.place.bind(tensors)
        if len(tensor.shape) < 2:
            raise ValueError(f"{self.place} {list(tensor.shape)} has no two axes to exchange.")

        def make(index: Index) -> np.ndarray:
            return tensor.read()[(*index[:-2], index[-1], index[-2])].swapaxes(-1, -2)

        *lead, a, b = tensor.shape
        return Made((*lead, b, a), make).as_tensor(tensor.dtype)

    def write(self, value: np.ndarray) -> Iterator[Piece]:
        return self.place.write(value.swapaxes(-1, -2))

    def __str__(self) -> str:
        return f"{self.place}, turned"


@dataclasses.dataclass(frozen=True)
class Stacked:
    """Places of one shape, one behind the other on a new first axis: the experts of a layer."""

    places: tuple[Place, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for place in self.places for name in place.names))

    def among(self, names: Container[str]) -> Place:
        return Stacked(tuple(place.among(names) for place in self.places))

    def bind(self, tensors: Mapping[str, Tensor]) -> Tensor:
        parts = [place.bind(tensors) for place in self.places]
        shapes = {part.shape for part in parts}
        if len(shapes) > 1:
            told = ", ".join(str(list(shape)) for shape in sorted(shapes))
            raise ValueError(f"{self} are of several shapes, {told}, and must be of one.")

        def make(index: Index) -> np.ndarray:
            return np.stack([part.read()[index[1:]] for part in parts[index[0]]])

        return Made((len(parts), *parts[0].shape), make).as_tensor(parts[0].dtype)

    def write(self, value: np.ndarray) -> Iterator[Piece]:
        for place, one in zip(self.places, value, strict=True):
            yield from place.write(one)

    def __str__(self) -> str:
        return f"{self.places[0]} .. {self.places[-1]}"


@dataclasses.dataclass(frozen=True)
class Joined:
    """The rows of several places as those of one array (`models.joint`)."""

    places: tuple[Place, ...]
    joint: Joint

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for place in self.places for name in place.names))

    def among(self, names: Container[str]) -> Place:
        return Joined(tuple(place.among(names) for place in self.places), self.joint)

    def bind(self, tensors: Mapping[str, Tensor]) -> Tensor:
        parts, joint = [place.bind(tensors) for place in self.places], self.joint
        rows, rest = tuple(part.shape[0] for part in parts), {part.shape[1:] for part in parts}
        if rows != joint.sizes or len(rest) > 1:
            told = ", ".join(str(list(part.shape)) for part in parts)
            raise ValueError(f"{self}: {told} have other rows than {joint.sizes}, or columns.")
        dtype = parts[0].dtype if len({part.dtype for part in parts}) == 1 else np.dtype(np.float64)

        def make(index: Index) -> np.ndarray:
            lines = index[0]
            found = [
                parts[number].read()[(slice(start, stop), *index[1:])].astype(dtype, copy=False)
                for number, start, stop in joint.rows(lines.start, lines.stop)
            ]
            whole = np.concatenate(found) if len(found) > 1 else found[0]
            return whole if lines.step == 1 else whole[:: lines.step]

        def put(index: Index, out: np.ndarray) -> bool:
            lines, at = index[0], 0
            if lines.step != 1:
                return False
            for number, start, stop in joint.rows(lines.start, lines.stop):
                some = (slice(start, stop), *index[1:])
                fill(parts[number].read(), some, out[at : at + stop - start])
                at += stop - start
            return True

        return Made((joint.size, *rest.pop()), make, put).as_tensor(dtype)

    def write(self, value: np.ndarray) -> Iterator[Piece]:
        for place, part in zip(self.places, self.joint.split(value), strict=True):
            yield from place.write(part)

    def __str__(self) -> str:
        *some, last = map(str, self.places)
        return f"{', '.join(some)} and {last}"


@dataclasses.dataclass(frozen=True)
class FirstOf:
    """Where checkpoints differ: the first of the places whose tensors are all there."""

    places: tuple[Place, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return self.places[0].names

    def among(self, names: Container[str]) -> Place:
        found = [place.among(names) for place in self.places]
        missing = [sum(name not in names for name in place.names) for place in found]
        return found[missing.index(min(missing))]

    def bind(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return self.among(tensors).bind(tensors)

    def write(self, value: np.ndarray) -> Iterator[Piece]:
        return self.places[0].write(value)

    def __str__(self) -> str:
        return str(self.places[0])


def as_place(place: str | Place) -> Place:
    """A tensor's name as a place."""
    return Whole(place) if isinstance(place, str) else place


def put_together(pieces: Iterator[Piece]) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint, from what its parameters write.

    Raises:
      ValueError: naming a tensor of which a part is not written.
    """
    tensors: dict[str, np.ndarray] = {}
    left: dict[str, int] = {}
    for name, shape, index, value in pieces:
        if value.shape == shape:
            tensors[name] = np.ascontiguousarray(value)
            continue
        if name not in tensors:
            tensors[name], left[name] = np.zeros(shape, value.dtype), int(np.prod(shape))
        tensors[name][index] = value
        left[name] -= value.size
    if missing := [name for name, count in left.items() if count]:
        raise ValueError(f"Of {missing[0]} only a part is known; it cannot be written.")
    return tensors
