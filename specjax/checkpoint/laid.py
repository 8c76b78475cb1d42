"""Where the parameters of a network are: in a checkpoint, on a mesh, and in which form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from specjax.checkpoint import kept
from specjax.checkpoint.errors import CheckpointError
from specjax.core import sharding
from specjax.core.quantised import Quantisation
from specjax.core.tensors import Tensor
from specjax.models import joining
from specjax.models.joint import dotted, joint_of
from specjax.models.layers.experts import MATRICES, Experts
from specjax.models.layers.joined import Joined as JoinedLayers
from specjax.models.layers.linear import Linear
from specjax.models.places import Joined, Place, as_place

Path = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Laid:
    """A parameter that is not read yet."""

    parameter: nnx.Param  # holds a shape
    place: Place  # in the checkpoint
    at: NamedSharding | None  # on the mesh
    short: bool  # it may be kept in 8 bits, or as it is packed
    form: kept.Kept | None  # as it is packed, where it stays so


@dataclasses.dataclass(frozen=True)
class Site:
    """What a network is read from, and where it goes.

    Attributes:
      tensors: of the checkpoint, by name.
      called: the tensor, or the place in several, of a parameter from its path.
      mesh, replicate: as of `assemble`.
      where: the checkpoint, for messages.
      keeps: what is packed stays so, where it can.
      all_products: as of `assemble_module`.
    """

    tensors: Mapping[str, Tensor]
    called: Callable[[str], str | Place]
    mesh: Mesh | None
    where: str
    replicate: bool
    keeps: bool
    all_products: bool = False

    def lay(self, module: nnx.Module) -> dict[Path, Laid]:
        """The parameters of ``module``, which holds shapes, by their paths."""
        others = product_paths(module) if self.all_products else frozenset()
        flat = nnx.to_flat_state(nnx.state(module))
        return {path: self._one(path, p, path in others) for path, p in flat}

    def join(self, module: nnx.Module, apart: Mapping[Path, Laid]) -> dict[Path, Laid]:
        """Joins matrices of one input (`models.joining`), but such as would be unpacked for it.

        ``apart`` is what `lay` says of ``module``, whose shapes fit.
        """

        def may(path: Path, joined: nnx.Module) -> bool:
            if not self.keeps:
                return True
            weight: Any = joined.weight  # type: ignore[attr-defined]
            whole = (*path, "weight")
            parts = [apart[part] for part in _paths(whole, weight)]
            if not any(part.form for part in parts):
                return True
            return self._one(whole, weight, parts[0].short).form is not None

        joining.join(module, self.mesh, replicate=self.replicate, may=may)
        return self.lay(module)

    def _one(self, path: Path, parameter: Any, product: bool) -> Laid:
        joint = joint_of(parameter)
        places = [as_place(self.called(dotted(part))) for part in _paths(path, parameter)]
        place = (places[0] if joint is None else Joined(tuple(places), joint)).among(self.tensors)
        at = placement(place, parameter, self.mesh, self.where, self.replicate)
        short = product or is_quantised(path, parameter)
        there = short and self.keeps and all(name in self.tensors for name in place.names)
        form = keep(parameter, place, self.tensors, at) if there else None
        return Laid(parameter, place, at, short, form)


def _paths(path: Path, parameter: Any) -> list[Path]:
    """A parameter's path, or those of its parts."""
    joint = joint_of(parameter)
    return [path] if joint is None else joint.paths(path)


def tensor_name(name: str) -> str:
    """A target's tensor: layers.3.norm.weight -> model.layers.3.norm.weight; the head is itself."""
    return name if name.startswith("lm_head.") else f"model.{name}"


def place_of(family: Any, config: Any, path: str) -> str | Place:
    """What a family says of a parameter; of one that says nothing, `tensor_name`."""
    said = getattr(family, "place_of", None)
    return tensor_name(path) if said is None else said(config, path)


def is_quantised(path: Sequence[Any], parameter: nnx.Param) -> bool:
    """Whether a parameter is one of the matrices that may be kept in 8 bits.

    Those of layers and of experts. Routers, norms, tables and what is kept precise stay whole.
    """
    if "layers" not in path or parameter.get_metadata().get("precise"):
        return False
    ndim = parameter.get_value().ndim
    return ndim == 3 if "experts" in path else ndim == 2 and "router" not in path


def product_paths(module: Any) -> frozenset[Path]:
    """The paths of the matrices of every `Linear` in ``module``, and of those of experts."""
    found: list[Path] = []
    part: Any
    for path, part in nnx.iter_modules(module):
        if isinstance(part, Experts):
            found += [(*path, name) for name in MATRICES]
            continue
        one = isinstance(part, Linear | JoinedLayers)
        if one and not part.weight.get_metadata().get("precise"):
            found.append((*path, "weight"))
    return frozenset(found)


def keep(
    parameter: nnx.Param,
    place: Place,
    tensors: Mapping[str, Tensor],
    placed: Any,
) -> kept.Kept | None:
    """A matrix as it is packed; None where it is not, or devices would share a group."""
    form = kept.bind(place, tensors, parameter.get_value().shape)
    return form if form is not None and form.fits(placed) else None


def held(
    parameter: nnx.Param,
    placed: Any,
    dtype: np.dtype,
    quantize: Quantisation | None,
    form: kept.Kept | None = None,
) -> int:
    """Bytes of a device's share of a parameter.

    ``quantize``: what it is rounded to, None: nothing; ``form``: its packed form, if that is kept.
    """
    whole: tuple[int, ...] = parameter.get_value().shape
    shape = whole if placed is None else placed.shard_shape(whole)
    if form is not None:
        return form.num_bytes(placed)
    if quantize is not None:
        return math.prod(shape) + math.prod(shape[:-1]) * np.dtype(np.float32).itemsize
    return math.prod(shape) * own_dtype(parameter, dtype).itemsize


def own_dtype(parameter: nnx.Param, dtype: np.dtype) -> np.dtype:
    """float32 of those that are marked as ``precise``, whatever the others are."""
    return np.dtype(np.float32) if parameter.get_metadata().get("precise") else dtype


def placement(
    name: Place | str, parameter: nnx.Param, mesh: Mesh | None, where: str, replicate: bool
) -> NamedSharding | None:
    """Where a parameter lives, after its logical axes."""
    if mesh is None:
        return None
    if replicate:
        return sharding.named(mesh, ())
    axes, shape = sharding.axes_of(parameter), parameter.get_value().shape
    placement = sharding.of_parameter(mesh, axes, shape)
    for size, axis in zip(shape, placement.spec, strict=True):
        if axis is not None and size % mesh.shape[axis]:
            raise CheckpointError(
                f"{where}: {name} {list(shape)} cannot be split over the {mesh.shape[axis]} "
                f"devices of the mesh axis {axis}, which do not divide {size}."
            )
    return placement
