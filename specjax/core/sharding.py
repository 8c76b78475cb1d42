"""Named once: logical axes of arrays, and the mesh axes they map to.

Parameters carry the logical axes of their dimensions (`Linear.axes`), caches and activations are
constrained by name through `constrain`. The mesh has the axes `data` (rows of a batch) and `model`
(heads, MLP width, vocabulary), and, where it is asked for, `experts` (those of a mixture; all else
is the same along it) and `fsdp`: rows of a batch, too, and of every parameter a part, which is put
together where it is used (Zhao et al. 2023, arXiv:2304.11277). Without a mesh everything here does
nothing.

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

# Logical axis -> mesh axes. An axis that is not named here is replicated.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "heads": ("model",),
    "kv_heads": ("model",),
    "mlp": ("model",),
    "fused": ("model",),
    "vocab": ("model",),
    "experts": ("experts",),
}
# Of a mesh; the last two only where they have more than one device.
AXES = ("data", "model", "experts", "fsdp")
_LEAST = 1 << 12  # elements of a parameter that is split over `fsdp`


def parse_mesh(spec: str, *, training: bool = False) -> Mesh | None:
    """Builds the mesh that a flag such as ``data:2,model:4`` names; "" is no mesh.

    Raises:
      ValueError: on an unknown axis, a size below one, or more devices than there are; with several
        processes also on any mesh that does not have all their devices; on the axis fsdp unless
        something is trained.
    """
    sizes = mesh_sizes(spec)
    if sizes["fsdp"] > 1 and not training:
        raise ValueError(
            f"--mesh={spec}: fsdp puts every weight together in every pass, which pays in training "
            "alone; split rows over data, weights over model."
        )
    mesh = make_mesh(**sizes) if spec else None
    check_mesh(mesh)
    return mesh


def mesh_sizes(spec: str) -> dict[str, int]:
    """The sizes of the axes that such a flag names; 1 where it does not.

    Raises:
      ValueError: on an unknown axis, one that is said twice, or a size below one.
    """
    sizes, said = dict.fromkeys(AXES, 1), set[str]()
    for part in spec.split(",") if spec else []:
        name, _, size = part.partition(":")
        name = name.strip()
        if name not in sizes or not size.strip().isdigit() or int(size) < 1:
            raise ValueError(
                f"--mesh={spec}: {part!r} is not AXIS:SIZE with axis data, model, experts or (in "
                "training) fsdp and a size of at least 1; write for example --mesh=data:2,model:4."
            )
        if name in said:
            raise ValueError(f"--mesh={spec}: the axis {name} is there twice; say it once.")
        said.add(name)
        sizes[name] = int(size)
    return sizes


def make_mesh(data: int = 1, model: int = 1, experts: int = 1, fsdp: int = 1) -> Mesh:
    """A mesh of ``data`` x ``model`` (x ``experts``, x ``fsdp``) devices, the first there are.

    Raises:
      ValueError: if there are fewer devices than that, or several processes with more.
    """
    sizes = axes_of_mesh(data=data, model=model, experts=experts, fsdp=fsdp)
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


def axes_of_mesh(**sizes: int) -> dict[str, int]:
    """The axes that a mesh of these sizes has, outermost first."""
    order = ("data", "fsdp", "model", "experts")
    return {n: sizes[n] for n in order if n in ("data", "model") or sizes.get(n, 1) > 1}


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
    found = ([n for n in RULES.get(a or "", ()) if n in there] for a in axes)
    return PartitionSpec(*map(_entry, found))


def _entry(names: list[str]) -> str | tuple[str, ...] | None:
    """Of a partition: the mesh axes that split one dimension."""
    return None if not names else names[0] if len(names) == 1 else tuple(names)


def named(mesh: Mesh | AbstractMesh, axes: tuple[str | None, ...]) -> NamedSharding:
    return NamedSharding(mesh, spec(axes, mesh))


def of_parameter(
    mesh: Mesh | AbstractMesh, axes: tuple[str | None, ...], shape: tuple[int, ...]
) -> NamedSharding:
    """Where a parameter lies: by its logical axes, and over `fsdp` by its largest other one.

    Small ones, and such as `fsdp` does not divide, are whole along that axis.
    """
    entries = [*spec(axes, mesh)]
    size = mesh.shape.get("fsdp", 1)
    free = [i for i, n in enumerate(shape) if entries[i] is None and n % size == 0]
    if size > 1 and free and math.prod(shape) >= _LEAST:
        entries[max(free, key=lambda i: shape[i])] = "fsdp"
    return NamedSharding(mesh, PartitionSpec(*entries))


def pieces(axis: str, mesh: Mesh | AbstractMesh | None = None) -> int:
    """In how many a logical axis is split over ``mesh``; None: that of the context, if any."""
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    return math.prod(mesh.shape[name] for name in RULES[axis] if name in mesh.axis_names)


def on_device(size: int, axis: str) -> int:
    """How many of ``size`` along a logical axis a device has: all, where that is not divided."""
    count = pieces(axis)
    return size // count if size % count == 0 else size


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
    entries = []
    for size, axis in zip(shape, axes, strict=True):
        names = [n for n in RULES.get(axis or "", ()) if n in mesh.axis_names]
        names = [] if "model" in names and replicated else names
        fits = size % math.prod(mesh.shape[n] for n in names) == 0
        entries.append(_entry(names if fits else []))
    return PartitionSpec(*entries)


def axis_size(name: str) -> int:
    """The size of a mesh axis in the current context; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or name not in mesh.axis_names else mesh.shape[name]


@contextlib.contextmanager
def use_mesh(mesh: Mesh | AbstractMesh | None) -> Iterator[None]:
    """``jax.set_mesh``, or nothing where there is no mesh; one without devices is for tracing."""
    if mesh is None:
        yield
    elif isinstance(mesh, AbstractMesh):
        with jax.sharding.use_abstract_mesh(mesh):
            yield
    else:
        with jax.set_mesh(mesh):
            yield


def axes_of(parameter: Any) -> tuple[str | None, ...]:
    """The logical axes of an `nnx.Variable`; of one that names none, as in plain layers, none."""
    axes = parameter.get_metadata().get("axes")
    return (None,) * parameter.get_value().ndim if axes is None else tuple(axes)
