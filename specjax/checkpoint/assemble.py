"""Tensors on disk -> the network of a family, without ever making random weights.

The module is built abstractly, its parameters are matched with the tensors by name and shape, and
only then are the tensors read, one at a time: cast, checked for NaN and infinity, and put straight
where they belong. On a mesh each device gets its slice of the file and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from specjax.checkpoint.errors import CheckpointError, some
from specjax.checkpoint.safetensors_reader import Tensor
from specjax.core import sharding
from specjax.models import DecoderConfig, Frozen

DTYPES = (np.dtype(np.float32), np.dtype(jnp.bfloat16))  # that a network computes in
_STORED = (*DTYPES, np.dtype(np.float16), np.dtype(np.float64))  # that are cast to those
_CHUNK = 1 << 22  # elements examined at a time, so that the check needs no second tensor


def assemble(
    family: Any,
    config: DecoderConfig,
    tensors: Mapping[str, Tensor],
    *,
    dtype: np.dtype,
    mesh: Mesh | None,
    where: str,
    replicate: bool = False,
) -> Frozen:
    """The network of ``family`` with these weights.

    Args:
      family: the class of the network, from `specjax.models.family`.
      config: its sizes, not yet adapted to the mesh.
      tensors: exactly its parameters, by the names that `tensor_name` gives them.
      dtype: float32 or bfloat16, of every parameter.
      mesh: with axes ``data`` and ``model``; None: the default device.
      where: the checkpoint, for messages.
      replicate: put all of the network on every device of the mesh, whatever its sizes.

    Raises:
      CheckpointError: before any tensor is read, on missing, unknown or misshapen tensors and on
        sizes that the mesh does not divide; while reading, on NaN and infinity.
    """
    check_layers(config, tensors, where)
    config = on_mesh(config, mesh, where, replicate)
    return assemble_module(
        lambda: family(config, dtype=dtype, rngs=nnx.Rngs(0)),
        tensors,
        called=tensor_name,
        dtype=dtype,
        mesh=mesh,
        where=where,
        replicate=replicate,
    )


def check_layers(config: DecoderConfig, tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuses more layers than there are tensors: building them could take forever."""
    if config.num_layers > len(tensors):
        raise CheckpointError(
            f"{where}: the config says {config.num_layers} layers, but tensors are missing: there "
            f"are only {len(tensors)}."
        )


def assemble_module(
    build: Callable[[], Any],
    tensors: Mapping[str, Tensor],
    *,
    called: Callable[[str], str],
    dtype: np.dtype,
    mesh: Mesh | None,
    where: str,
    replicate: bool = False,
) -> Frozen:
    """The module that ``build`` makes, with these weights; nothing random is ever computed.

    Args:
      build: makes the nnx module, which has a ``config``; its parameters carry logical axes.
      tensors: exactly its parameters, by their names in the checkpoint.
      called: the checkpoint's name of a parameter, from its path in the module,
        ``layers.3.norm.weight``.
      dtype, mesh, where, replicate: as in `assemble`.

    Raises:
      CheckpointError: as `assemble` does; messages use the checkpoint's names.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"{where}: dtype {dtype} is not supported; use float32 or bfloat16.")
    abstract = nnx.eval_shape(build)
    graphdef, state = nnx.split(abstract)
    flat = nnx.to_flat_state(state)
    parameters = {called(".".join(map(str, path))): parameter for path, parameter in flat}
    check_tensors({n: p.get_value().shape for n, p in parameters.items()}, tensors, where)
    placement = {n: _placement(n, p, mesh, where, replicate) for n, p in parameters.items()}
    loaded = [
        (path, parameter.replace(_place(name, tensors[name], dtype, placement[name], where)))
        for (path, parameter), name in zip(flat, parameters)
    ]
    params = nnx.from_flat_state(loaded)
    return Frozen(params=params, graphdef=graphdef, config=abstract.config, replicated=replicate)


def tensor_name(name: str) -> str:
    """A target's tensor: layers.3.norm.weight -> model.layers.3.norm.weight; the head is itself."""
    return name if name.startswith("lm_head.") else f"model.{name}"


def check_tensors(
    wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], where: str
) -> None:
    """Compares names, shapes and storage types.

    Raises:
      CheckpointError: on the first kind of difference, naming a few tensors and their number.
    """
    if missing := wanted.keys() - tensors.keys():
        hint = ""
        if "lm_head.weight" in missing:
            hint = " (a checkpoint without lm_head.weight says tie_word_embeddings in config.json)"
        raise CheckpointError(f"{where}: {len(missing)} missing tensors: {some(missing)}{hint}.")
    if unknown := tensors.keys() - wanted.keys():
        raise CheckpointError(
            f"{where}: {len(unknown)} unknown tensors, which would be ignored: {some(unknown)}; "
            "the architecture differs from what config.json says."
        )
    wrong = [n for n, shape in wanted.items() if tensors[n].shape != shape]
    if wrong:
        shapes = [f"{n} is {list(tensors[n].shape)}, not {list(wanted[n])}" for n in wrong]
        raise CheckpointError(f"{where}: {len(wrong)} tensors of the wrong shape: {some(shapes)}.")
    odd = [f"{n} ({t.dtype})" for n, t in tensors.items() if t.dtype not in _STORED]
    if odd:
        raise CheckpointError(
            f"{where}: {len(odd)} tensors stored in an unsupported dtype: {some(odd)}; use weights "
            "in float32, bfloat16 or float16."
        )


def on_mesh(config: DecoderConfig, mesh: Mesh | None, where: str, replicate: bool) -> DecoderConfig:
    """The config adapted to the model axis of the mesh.

    Raises:
      CheckpointError: if the mesh lacks an axis, or its sizes do not divide those of the model.
    """
    if mesh is None:
        return config
    absent = {"data", "model"} - set(mesh.axis_names)
    if absent:
        raise CheckpointError(
            f"The mesh has axes {', '.join(mesh.axis_names)} but lacks {some(absent)}; make it "
            "with specjax.core.sharding.make_mesh."
        )
    if replicate or mesh.shape["model"] == 1:
        return config
    if not hasattr(config, "for_model_axis"):
        raise CheckpointError(
            f"{where}: this family cannot be split over {mesh.shape['model']} devices (its config "
            "has no for_model_axis(size)): use a model axis of 1."
        )
    try:
        return config.for_model_axis(mesh.shape["model"])
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _placement(
    name: str, parameter: nnx.Param, mesh: Mesh | None, where: str, replicate: bool
) -> NamedSharding | None:
    """Where a parameter lives, after its logical axes."""
    if mesh is None:
        return None
    if replicate:
        return sharding.named(mesh, ())
    axes, shape = sharding.axes_of(parameter), parameter.get_value().shape
    placement = sharding.named(mesh, axes)
    for size, axis in zip(shape, placement.spec, strict=True):
        if axis is not None and size % mesh.shape[axis]:
            raise CheckpointError(
                f"{where}: {name} {list(shape)} cannot be split over the {mesh.shape[axis]} "
                f"devices of the mesh axis {axis}, which do not divide {size}."
            )
    return placement


def _place(
    name: str, tensor: Tensor, dtype: np.dtype, placement: NamedSharding | None, where: str
) -> jax.Array:
    """Reads one tensor onto its device or devices."""
    view = tensor.read()

    def on_host(index: tuple[slice, ...]) -> np.ndarray:
        part = np.array(view[index], dtype=dtype, order="C")
        if not _finite(part):
            raise CheckpointError(
                f"{where}: {name} holds NaN or infinity (as {dtype}); the weights are damaged."
            )
        return part

    if placement is None:
        array = jax.device_put(on_host(()))
    else:
        slices: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

        def one_device(index: Any) -> np.ndarray:
            # Devices along the data axis hold the same slice, which is read once.
            key = tuple(s.indices(n)[:2] for s, n in zip(index, view.shape))
            if key not in slices:
                slices[key] = on_host(index)
            return slices[key]

        array = jax.make_array_from_callback(tensor.shape, placement, one_device, dtype=dtype)
    # Transfers are asynchronous: waiting keeps no more than this tensor in host memory.
    return array.block_until_ready()


def _finite(array: np.ndarray) -> bool:
    """No NaN or infinity: their exponent bits, and only theirs, are all ones."""
    bits, exponent = (
        (array.view(np.uint32), np.uint32(0x7F800000))
        if array.dtype == np.float32
        else (array.view(np.uint16), np.uint16(0x7F80))
    )
    bits = bits.reshape(-1)
    for start in range(0, bits.size, _CHUNK):
        if ((bits[start : start + _CHUNK] & exponent) == exponent).any():
            return False
    return True
