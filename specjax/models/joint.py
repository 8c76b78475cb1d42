"""Matrices that multiply one input, kept as one: where the rows of each lie.

Of a matrix that n devices split, each has its share of every part, the parts behind one another:

    parts q, k, v over 2 devices:    q[:half]  k[:half]  v[:half] | q[half:]  k[half:]  v[half:]

so that a device cuts what it multiplied into the parts without asking the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Joint:
    """Parts of ``sizes`` rows each, in ``blocks`` equal shares. Hashable: it is compiled in."""

    names: tuple[str, ...]  # the parts, as the attributes of their layer, or dotted paths from it
    sizes: tuple[int, ...]
    axes: tuple[str | None, ...] = ()  # logical ones of the rows of each
    blocks: int = 1
    copied: bool = False  # the parts are kept where they were as well

    @property
    def size(self) -> int:
        """Rows of all parts."""
        return sum(self.sizes)

    @property
    def begins(self) -> tuple[int, ...]:
        """Where the rows of each part begin in a share."""
        return (0, *np.cumsum([size // self.blocks for size in self.sizes]).tolist()[:-1])

    def join(self, parts: Sequence[Any]) -> Any:
        """Parts [O_i, ..] as one array [sum O_i, ..]; of `Quantised` parts one of those."""
        return jax.tree.map(lambda *each: self._join(each), *parts)

    def split(self, whole: Any, axis: int = 0) -> tuple[Any, ...]:
        """The parts of an array of JAX or NumPy, or of a `Quantised`, along ``axis``."""
        leaves, structure = jax.tree.flatten(whole)
        each = zip(*(self._split(leaf, axis) for leaf in leaves))
        return tuple(jax.tree.unflatten(structure, part) for part in each)

    def paths(self, path: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Where the parts of the joined parameter at ``path`` would be, each by itself."""
        return [(*path[:-2], *steps(name), path[-1]) for name in self.names]

    def rows(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Where rows ``start`` to ``stop`` come from: (number of the part, its start, its stop)."""
        found, share = [], self.size // self.blocks
        for block in range(start // share, -(-stop // share)):
            at = block * share
            for number, size in enumerate(self.sizes):
                mine = size // self.blocks
                first, last = max(start, at), min(stop, at + mine)
                if first < last:
                    moved = block * mine - at
                    found.append((number, first + moved, last + moved))
                at += mine
        return found

    def _join(self, parts: Sequence[Any]) -> Any:
        if isinstance(parts[0], jax.ShapeDtypeStruct):
            return jax.eval_shape(self._join, [_plain(part) for part in parts])
        rest = parts[0].shape[1:]
        shares = [part.reshape(self.blocks, -1, *rest) for part in parts]
        return jnp.concatenate(shares, axis=1).reshape(self.size, *rest)

    def _split(self, whole: Any, axis: int) -> list[Any]:
        axis %= whole.ndim
        shape, (before, after) = whole.shape, (whole.shape[:axis], whole.shape[axis + 1 :])
        stops = np.cumsum([size // self.blocks for size in self.sizes]).tolist()
        shares = whole.reshape(*before, self.blocks, self.size // self.blocks, *after)
        lead = (slice(None),) * (axis + 1)
        return [
            shares[(*lead, slice(start, stop))].reshape(*shape[:axis], size, *after)
            for start, stop, size in zip([0, *stops], stops, self.sizes)
        ]


def joint_of(parameter: Any) -> Joint | None:
    """The parts of an `nnx.Param` that was joined; None: it is one by itself."""
    found: Joint | None = parameter.get_metadata().get("joint")
    return found


def is_copy(parameter: Any) -> bool:
    """Whether other parameters hold the same numbers."""
    joint = joint_of(parameter)
    return joint is not None and joint.copied


def dotted(path: Sequence[Any]) -> str:
    """``layers.3.norm.weight``"""
    return ".".join(map(str, path))


def steps(path: str) -> tuple[Any, ...]:
    """What `dotted` was made of."""
    return tuple(int(step) if step.isdigit() else step for step in path.split("."))


def _plain(part: Any) -> Any:
    return jax.ShapeDtypeStruct(part.shape, part.dtype)
