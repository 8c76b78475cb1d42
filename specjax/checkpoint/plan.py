"""What a checkpoint will need in memory, from its config and the headers of its files alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh

from specjax.checkpoint.assemble import check_layers, on_mesh
from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.hf import read_config, read_layout
from specjax.checkpoint.laid import Site, held, place_of
from specjax.core import sharding
from specjax.core.files import is_there
from specjax.core.quantised import Quantisation
from specjax.models import Frozen

# Parts, and what the names of their parameters and tensors hold; the first that does.
_PARTS = {
    "head": ("lm_head",),
    "embedding": ("embed_tokens",),
    "experts": ("experts",),
    "attention": ("attn",),
}
OTHERS = "MLPs, norms, routers"


@dataclasses.dataclass(frozen=True)
class Part:
    """Of a network; bytes."""

    name: str
    stored: int  # in the files
    packed: int  # of those, in tensors that are unpacked as they are read
    whole: int  # in memory, of all of it
    device: int  # on each device of the mesh


@dataclasses.dataclass(frozen=True)
class Plan:
    """The weights of a checkpoint on a mesh. Caches and activations come on top."""

    parts: tuple[Part, ...]
    dtype: np.dtype
    cache: int = 0  # bytes of what is remembered of one more token of a text, on all devices

    def total(self, what: str) -> int:
        """Of a field of all parts, such as "device"."""
        return sum(getattr(part, what) for part in self.parts)


def plan(
    directory: Path,
    sizes: Mapping[str, int],
    *,
    dtype: np.dtype | None = None,
    quantize: Quantisation | None = None,
    packed: bool = False,
    kv_cache: Quantisation | None = None,
    family_name: str | None = None,
) -> Plan:
    """Reads no weights, and needs none of the devices.

    Args:
      directory: a Hugging Face directory.
      sizes: of the mesh's axes, as `sharding.mesh_sizes` gives them.
      dtype, quantize, packed, family_name: as for `load_network`.
      kv_cache: as of `load`.

    Raises:
      CheckpointError: on a checkpoint that would be refused for its config or names of tensors, and
        on sizes that the mesh does not divide.
      ValueError: if no layer can remember in 8 bits.
    """
    if not is_there(directory / "config.json"):
        raise CheckpointError(f"{directory}: has no config.json, and plans are of directories.")
    raw = read_config(directory / "config.json")
    found = read_layout(directory, raw, dtype=dtype, family_name=family_name)
    check_layers(found.config, found.tensors, str(directory))
    mesh = _mesh(sizes)
    config = on_mesh(found.config, mesh, str(directory), replicate=False)
    abstract = nnx.eval_shape(lambda: found.family(config, dtype=found.dtype, rngs=nnx.Rngs(0)))
    net = Frozen.of(abstract).remembering(kv_cache, directory.name)
    whole: dict[str, int] = {}
    device: dict[str, int] = {}
    called = lambda path: place_of(found.family, config, path)
    keeps = packed and quantize is None
    site = Site(found.tensors, called, mesh, str(directory), replicate=False, keeps=keeps)
    # Joined or not, matrices take the same room.
    for path, one in site.lay(abstract).items():
        part = _part(".".join(map(str, path)))
        for into, at in ((whole, None), (device, one.at)):
            size = held(one.parameter, at, found.dtype, quantize if one.short else None, one.form)
            into[part] = into.get(part, 0) + size
    stored, in_bits = (
        _stored(found.stored),
        _stored({n: t for n, t in found.stored.items() if found.tensors.get(n) is not t}),
    )
    names = [name for name in (*_PARTS, OTHERS) if name in whole]
    return Plan(
        tuple(
            Part(name, stored.get(name, 0), in_bits.get(name, 0), whole[name], device[name])
            for name in sorted(names, key=lambda name: -whole[name])
        ),
        found.dtype,
        _cache(net),
    )


def _cache(net: Frozen) -> int:
    """Bytes of a token, behind more of them than windows are wide."""
    many = 1 << 20
    size = lambda slots: jax.eval_shape(lambda net: net.init_cache(1, slots), net).num_bytes
    return int(size(many + 1) - size(many))


def _mesh(sizes: Mapping[str, int]) -> Any:
    """A mesh of no devices; None where one is enough."""
    kept = sharding.axes_of_mesh(**{axis: sizes.get(axis, 1) for axis in sharding.AXES})
    if math.prod(kept.values()) == 1:
        return None
    return AbstractMesh(tuple(kept.values()), tuple(kept))


def _part(name: str) -> str:
    return next((part for part, said in _PARTS.items() if any(s in name for s in said)), OTHERS)


def _stored(tensors: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of the files, by part."""
    found: dict[str, int] = {}
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape) * tensor.dtype.itemsize
        found[_part(name)] = found.get(_part(name), 0) + size
    return found
