"""Named once: logical axes of arrays, and the mesh axes they map to.

Parameters carry the logical axes of their dimensions (`Linear.axes`), caches and activations are
constrained by name through `constrain`. The mesh has the axes `data` (rows of a batch) and `model`
(heads, MLP width, vocabulary), and, where it is asked for, `experts` (those of a mixture; all else
is the same along it). Without a mesh everything here does nothing.

The mesh axes are *Auto*: the compiler propagates shardings between the places that are pinned
here. docs/design.md says why they are not Explicit, and which test guards against what Explicit
axes would have caught.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from specjax.core import hosts

Array = jax.Array

# Logical axis -> mesh axis. An axis that is not named here is replicated.
RULES: dict[str, str] = {
    "batch": "data",
    "heads": "model",
    "kv_heads": "model",
    "mlp": "model",
    "fused": "model",
    "vocab": "model",
    "experts": "experts",
}
AXES = ("data", "model", "experts")  # of a mesh; the last only where it has more than one device


def parse_mesh(spec: str) -> Mesh | None:
    """Builds the mesh that a flag such as ``data:2,model:4`` names; "" is no mesh.

    Raises:
      ValueError: on an unknown axis, a size below one, or more devices than there are; with several
        processes also on any mesh that does not have all their devices.
    """
    mesh = make_mesh(**mesh_sizes(spec)) if spec else None
    check_mesh(mesh)
    return mesh


def mesh_sizes(spec: str) -> dict[str, int]:
    """The sizes of the axes that such a flag names; 1 where it does not.

    Raises:
      ValueError: on an unknown axis or a size below one.
    """
    sizes = dict.fromkeys(AXES, 1)
    for part in spec.split(",") if spec else []:
        name, _, size = part.partition(":")
        name = name.strip()
        if name not in sizes or not size.strip().isdigit() or int(size) < 1:
            raise ValueError(
                f"--mesh={spec}: {part!r} is not AXIS:SIZE with axis data, model or experts and "
                "a size of at least 1; write for example --mesh=data:2,model:4."
            )
        sizes[name] = int(size)
    return sizes


def make_mesh(data: int = 1, model: int = 1, experts: int = 1) -> Mesh:
    """A mesh of ``data`` x ``model`` (x ``experts``) devices, the first ones there are.

    Raises:
      ValueError: if there are fewer devices than that, or several processes with more.
    """
    sizes = {"data": data, "model": model, **({"experts": experts} if experts > 1 else {})}
    said = ",".join(f"{name}:{size}" for name, size in sizes.items())
    need, have = math.prod(sizes.values()), jax.device_count()
    if hosts.count() > 1 and need != have:
        raise ValueError(
            f"A mesh of {said} has {need} devices, but {hosts.count()} "
            f"processes have {have} together, and a mesh needs all of them: write "
            f"--mesh={_of_all(data, model, experts)}."
        )
    if need > have:
        raise ValueError(
            f"A mesh of {said} needs {need} devices, but JAX sees {have} "
            f"({jax.default_backend()}); use a smaller mesh, or on CPU set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={need}."
        )
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=jax.devices()[:need],
    )


def check_mesh(mesh: Mesh | None) -> None:
    """Raises ValueError where several processes have no mesh, or one without all their devices."""
    if hosts.count() > 1 and (mesh is None or mesh.devices.size != jax.device_count()):
        raise ValueError(
            f"{hosts.count()} processes need a mesh of all their {jax.device_count()} devices, or "
            f"each would do the same work alone: write --mesh={_of_all(1, 1, 1)}."
        )


def _of_all(data: int, model: int, experts: int) -> str:
    """A mesh of all devices, as much like the one that was asked for as can be."""
    left = jax.device_count()
    if left % experts:
        experts = math.gcd(left, experts)
    left //= experts
    if left % model:
        model = left // data if left % data == 0 else 1
    found = f"data:{left // model},model:{model}"
    return found + (f",experts:{experts}" if experts > 1 else "")


def spec(axes: tuple[str | None, ...], mesh: Mesh | AbstractMesh | None = None) -> PartitionSpec:
    """The partition of an array whose dimensions have these logical axes.

    ``mesh`` says which axes there are; None: that of the context.
    """
    there = (mesh or jax.sharding.get_abstract_mesh()).axis_names
    found = (RULES.get(a) if a is not None else None for a in axes)
    return PartitionSpec(*(name if name in there else None for name in found))


def named(mesh: Mesh, axes: tuple[str | None, ...]) -> NamedSharding:
    return NamedSharding(mesh, spec(axes, mesh))


def constrain(x: Array, *axes: str | None, replicated: bool = False) -> Array:
    """Pins ``x`` to the sharding of its logical axes. Does nothing outside a mesh.

    With ``replicated`` nothing is split over the axis ``model``: each device computes it all.

    A dimension that its mesh axis does not divide stays replicated: a batch of one row on a mesh
    with two data shards is legitimate.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    partition = fitting(x.shape, axes, replicated=replicated)
    found: Array = jax.lax.with_sharding_constraint(x, partition)
    return found


def fitting(
    shape: tuple[int, ...], axes: tuple[str | None, ...], *, replicated: bool = False
) -> PartitionSpec:
    """How `constrain` splits an array of this shape over the mesh of the context."""
    mesh = jax.sharding.get_abstract_mesh()
    entries: list[str | None] = []
    for size, axis in zip(shape, axes, strict=True):
        name = RULES.get(axis) if axis is not None else None
        name = None if name == "model" and replicated else name
        fits = name in mesh.axis_names and size % mesh.shape[name] == 0
        entries.append(name if fits else None)
    return PartitionSpec(*entries)


def axis_size(name: str) -> int:
    """The size of a mesh axis in the current context; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or name not in mesh.axis_names else mesh.shape[name]


@contextlib.contextmanager
def use_mesh(mesh: Mesh | None) -> Iterator[None]:
    """``jax.set_mesh``, or nothing where there is no mesh."""
    if mesh is None:
        yield
    else:
        with jax.set_mesh(mesh):
            yield


def axes_of(parameter: Any) -> tuple[str | None, ...]:
    """The logical axes of an `nnx.Variable`; of one that names none, as in plain layers, none."""
    axes = parameter.get_metadata().get("axes")
    return (None,) * parameter.get_value().ndim if axes is None else tuple(axes)
