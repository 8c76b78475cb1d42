"""Networks whose matrices of one input are joined, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flax import nnx
from jax.sharding import AbstractMesh, Mesh

from specjax.core.sharding import RULES, axes_of, pieces
from specjax.models.frozen import Frozen
from specjax.models.joint import is_copy, joint_of, steps
from specjax.models.layers.joined import Joined, Joining
from specjax.models.layers.linear import Linear

Path = tuple[Any, ...]


def join(
    module: nnx.Module,
    mesh: Mesh | AbstractMesh | None = None,
    *,
    replicate: bool = False,
    may: Callable[[Path, Joined], bool] = lambda path, joined: True,
) -> None:
    """Joins in ``module`` what can be; weights may be arrays or their shapes.

    What devices would split in different ways stays apart: repeated key/value heads, which come
    from whole matrices, and the queries beside them.

    Args:
      module: any that holds `Joining` layers.
      mesh: that it lies on, or will; None: one device.
      replicate: every device of the mesh has all of it.
      may: asked of each layer that has parts to join, by its path and what would be joined.
    """

    def one(path: Path, layer: Any, whole: str, names: Sequence[str], copied: bool) -> bool:
        found = {name: _at(layer, name) for name in names}
        blocks = _blocks(list(found.values()), mesh, replicate)
        if blocks is None or (copied and axes_of(found[names[0]].weight)[0] is None):
            return False  # (of repeated heads a device multiplies by some of what it has whole)
        joined = Joined(found, blocks, copied=copied)
        if not may((*path, whole), joined):
            return False
        setattr(layer, whole, joined)
        return True

    apart: set[Path] = set()  # what a copy would be of: without it, each is called by itself
    for path, layer in list(nnx.iter_modules(module)):
        if isinstance(layer, Joining) and "copies" in vars(type(layer)):
            for whole, names in layer.copies.items():
                if not one(path, layer, whole, names, True):
                    apart |= {(*path, *steps(name)) for name in names}
    for path, layer in list(nnx.iter_modules(module)):
        for whole, names in vars(type(layer)).get("joints", {}).items():
            called = any((*path, name) in apart for name in names)
            if not called and one(path, layer, whole, names, False):
                for name in names:
                    delattr(layer, name)


def _at(layer: Any, name: str) -> Any:
    """The part of ``layer`` at a dotted path; None: it has none."""
    for step in steps(name):
        layer = layer[step] if isinstance(step, int) else getattr(layer, step, None)
    return layer


def _blocks(parts: Sequence[Any], mesh: Any, replicate: bool) -> int | None:
    """In how many shares the rows of all parts are split; None: they cannot be joined."""
    if not all(type(part) is Linear for part in parts):
        return None
    kinds = {
        (RULES.get(rows or ""), columns, p.weight.shape[1], p.weight.dtype, p.has_bias)
        for p in parts
        for rows, columns in [axes_of(p.weight)]
    }
    axis, columns = axes_of(parts[0].weight)
    if len(kinds) > 1 or columns is not None:
        return None
    blocks = 1 if mesh is None or replicate or axis is None else pieces(axis, mesh)
    return blocks if all(part.weight.shape[0] % blocks == 0 for part in parts) else None


def separate(module: nnx.Module) -> None:
    """Takes what is joined in ``module`` apart: every matrix by itself, as checkpoints name it."""
    for _, layer in list(nnx.iter_modules(module)):
        if isinstance(layer, Joining):
            for whole in layer.copies:
                if layer.is_joined(whole):
                    delattr(layer, whole)
            for whole in type(layer).joints:
                if layer.is_joined(whole):
                    for name, part in getattr(layer, whole).parts().items():
                        setattr(layer, name, part)
                    delattr(layer, whole)


def joined(net: Frozen, mesh: Mesh | None = None) -> Frozen:
    """``net`` with its matrices joined, as it lies on ``mesh``."""
    module = net.module  # merged anew: changing it leaves ``net`` as it is
    join(module, mesh, replicate=net.replicated)
    return net.with_module(module)


def separated(net: Frozen) -> Frozen:
    """``net`` with every matrix by itself; as it is where none are joined."""
    if not any(joint_of(p) for _, p in nnx.to_flat_state(net.params)):
        return net
    module = net.module
    separate(module)
    return net.with_module(module)


def by_themselves(state: Any) -> Iterator[tuple[Path, Any, Any]]:
    """Every parameter of an `nnx.State` by itself: its path, a parameter like it, its value."""
    for path, parameter in nnx.to_flat_state(state):
        if is_copy(parameter):
            continue
        joint, value = joint_of(parameter), parameter.get_value()
        if joint is None:
            yield path, parameter, value
            continue
        for place, part in zip(joint.paths(path), joint.split(value), strict=True):
            yield place, parameter, part
