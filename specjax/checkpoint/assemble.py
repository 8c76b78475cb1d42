"""Tensors on disk -> the network of a family, without ever making random weights.

The module is built abstractly, its parameters are matched with the tensors by name and shape, and
only then are the tensors read: cast, checked for NaN and infinity, and put straight where they
belong, while the next ones are being read (`checkpoint.reading`). On a mesh each device gets its
slice of the file and nothing else.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from specjax.checkpoint import kept, memory
from specjax.checkpoint.errors import CheckpointError, some
from specjax.checkpoint.laid import Laid, Site, held, own_dtype, place_of
from specjax.checkpoint.reading import Box, Reader, in_order
from specjax.core import pulse
from specjax.core.quantised import Quantisation, quantise, quantise_in_place
from specjax.core.tensors import Tensor
from specjax.models import DecoderConfig, Frozen
from specjax.models.places import Place

DTYPES = (np.dtype(np.float32), np.dtype(jnp.bfloat16))  # that a network computes in
_OUTLINED: contextvars.ContextVar[bool] = contextvars.ContextVar("outlined", default=False)
STORED = (*DTYPES, np.dtype(np.float16), np.dtype(np.float64))  # that are cast to those


def assemble(
    family: Any,
    config: DecoderConfig,
    tensors: Mapping[str, Tensor],
    *,
    dtype: np.dtype,
    mesh: Mesh | None,
    where: str,
    replicate: bool = False,
    quantize: Quantisation | None = None,
    packed: bool = False,
    join: bool = True,
) -> Frozen:
    """The network of ``family`` with these weights.

    Args:
      family: the class of the network, from `specjax.models.family`.
      config: its sizes, not yet adapted to the mesh.
      tensors: exactly those that its parameters are made of (`Decoder.place_of`).
      dtype: float32 or bfloat16, of every parameter.
      mesh: with axes ``data`` and ``model``; None: the default device.
      where: the checkpoint, for messages.
      replicate: put all of the network on every device of the mesh, whatever its sizes.
      quantize: keep the matrices of layers, which are multiplied, in 8 bits; None: as they are.
      packed: leave those of them that the checkpoint packs as they are packed, where they can be.
      join: matrices of one input are kept as one (`models.joining`), but for those that could then
        not stay as they are packed.

    Raises:
      CheckpointError: before any tensor is read, on missing, unknown or misshapen tensors and on
        sizes that the mesh does not divide; while reading, on NaN and infinity.
    """
    check_layers(config, tensors, where)
    config = on_mesh(config, mesh, where, replicate)
    return assemble_module(
        lambda: family(config, dtype=dtype, rngs=nnx.Rngs(0)),
        tensors,
        called=lambda path: place_of(family, config, path),
        dtype=dtype,
        mesh=mesh,
        where=where,
        replicate=replicate,
        quantize=quantize,
        packed=packed,
        join=join,
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
    called: Callable[[str], str | Place],
    dtype: np.dtype,
    mesh: Mesh | None,
    where: str,
    replicate: bool = False,
    quantize: Quantisation | None = None,
    packed: bool = False,
    all_products: bool = False,
    join: bool = True,
) -> Frozen:
    """The module that ``build`` makes, with these weights; nothing random is ever computed.

    Args:
      build: makes the nnx module, which has a ``config``; its parameters carry logical axes.
      tensors: exactly those that its parameters are made of, by their names in the checkpoint.
      called: the tensor, or the place in several, of a parameter, from its path in the module,
        ``layers.3.norm.weight``.
      dtype, mesh, where, replicate, quantize, packed, join: as in `assemble`.
      all_products: ``quantize`` and ``packed`` are about every matrix of a `Linear`, heads among
        them, which nobody borrows of a drafter.

    Raises:
      CheckpointError: as `assemble` does; messages use the checkpoint's names.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"{where}: dtype {dtype} is not supported; use float32 or bfloat16.")
    abstract = nnx.eval_shape(build)
    keeps = packed and quantize is None
    site = Site(tensors, called, mesh, where, replicate, keeps, all_products)
    laid = site.lay(abstract)
    shapes = [one.parameter.get_value().shape for one in laid.values()]
    bind([one.place for one in laid.values()], shapes, tensors, where)
    if join:
        laid = site.join(abstract, laid)
    rounded = lambda one: quantize if one.short else None
    need = sum(held(x.parameter, x.at, dtype, rounded(x), x.form) for x in laid.values())
    memory.check_fits(need, mesh, where)
    if _OUTLINED.get():
        return _outline(abstract, laid, dtype, quantize, replicate)
    loaded = []
    with Reader() as reader:
        begun = (
            _begin(one, reader, tensors, own_dtype(one.parameter, dtype), where)
            for one in laid.values()
        )
        for (path, one), value in zip(laid.items(), in_order(begun), strict=True):
            if quantize is not None and one.short:
                value = quantise_in_place(value, kind=quantize)
            loaded.append((path, one.parameter.replace(value)))
            pulse.beat()
    params, graphdef = nnx.from_flat_state(loaded), nnx.graphdef(abstract)
    return Frozen(params=params, graphdef=graphdef, config=abstract.config, replicated=replicate)


def bind(
    places: Sequence[Place],
    shapes: Sequence[tuple[int, ...]],
    tensors: Mapping[str, Tensor],
    where: str,
) -> list[Tensor]:
    """Compares names, shapes and storage types; the parameters, not read yet.

    Raises:
      CheckpointError: on the first kind of difference, naming a few tensors and their number.
    """
    wanted = {name for place in places for name in place.names}
    if missing := wanted - tensors.keys():
        hint = ""
        if "lm_head.weight" in missing:
            hint = " (a checkpoint without lm_head.weight says tie_word_embeddings in config.json)"
        raise CheckpointError(f"{where}: {len(missing)} missing tensors: {some(missing)}{hint}.")
    if unknown := tensors.keys() - wanted:
        raise CheckpointError(
            f"{where}: {len(unknown)} unknown tensors, which would be ignored: {some(unknown)}; "
            "the architecture differs from what config.json says."
        )
    try:
        bound = [place.bind(tensors) for place in places]
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from None
    wrong = [
        f"{place} is {list(tensor.shape)}, not {list(shape)}"
        for place, tensor, shape in zip(places, bound, shapes, strict=True)
        if tensor.shape != shape
    ]
    if wrong:
        raise CheckpointError(f"{where}: {len(wrong)} tensors of the wrong shape: {some(wrong)}.")
    kinds = {name: tensors[name].dtype for name in wanted}
    odd = [f"{name} ({dtype})" for name, dtype in kinds.items() if dtype not in STORED]
    if odd:
        raise CheckpointError(
            f"{where}: {len(odd)} tensors stored in an unsupported dtype: {some(odd)}; use weights "
            "in float32, bfloat16 or float16."
        )
    return bound


def on_mesh(
    config: DecoderConfig,
    mesh: Mesh | None,
    where: str,
    replicate: bool,
    *,
    beside: bool = False,
) -> DecoderConfig:
    """The config adapted to the model axis of the mesh.

    ``beside``: of a draft, beside a target whose experts are split. It is whole along that axis.

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
    if (
        not (replicate or beside)
        and "experts" in mesh.axis_names
        and not getattr(config, "has_mixture", False)
    ):
        raise CheckpointError(
            f"{where}: this model has no experts that could be split over "
            f"{mesh.shape['experts']} devices; leave the axis experts out of the mesh."
        )
    if replicate or mesh.shape["model"] == 1:
        return config
    if not hasattr(config, "for_model_axis"):
        raise CheckpointError(
            f"{where}: this family cannot be split over {mesh.shape['model']} devices (its config "
            "has no for_model_axis(size)): use a model axis of 1."
        )
    size = mesh.shape["model"]
    try:
        return config.for_model_axis(size)
    except ValueError as error:
        fits = max(n for n in range(1, size) if size % n == 0 and _fits(config, n))
        others = {n: mesh.shape[n] for n in mesh.axis_names if n != "model"}
        others["data"] *= size // fits
        asked = ",".join(f"{n}:{others.get(n, fits)}" for n in mesh.axis_names)
        raise CheckpointError(f"{where}: {error} --mesh={asked} would do.") from error


def _fits(config: DecoderConfig, size: int) -> bool:
    try:
        config.for_model_axis(size)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def outlined() -> Iterator[None]:
    """Inside, networks have shapes in the place of weights, and no weight is read.

    What is rounded on a mesh cannot be outlined: ValueError.
    """
    before = _OUTLINED.set(True)
    try:
        yield
    finally:
        _OUTLINED.reset(before)


def is_outlined() -> bool:
    return _OUTLINED.get()


def _outline(
    abstract: Any,
    laid: Mapping[Any, Laid],
    dtype: np.dtype,
    quantize: Quantisation | None,
    replicate: bool,
) -> Frozen:
    """The network that would be loaded, with shapes for weights."""
    shaped = []
    for path, one in laid.items():
        shape, own = one.parameter.get_value().shape, own_dtype(one.parameter, dtype)
        value: Any = jax.ShapeDtypeStruct(shape, own, sharding=one.at)
        if one.form is not None:
            value = one.form.outline(own, one.at)
        elif quantize is not None and one.short:
            if one.at is not None:
                raise ValueError("the compiler alone knows where it puts what it rounds")
            value = jax.eval_shape(functools.partial(quantise, kind=quantize), value)
        shaped.append((path, one.parameter.replace(value)))
    params, graphdef = nnx.from_flat_state(shaped), nnx.graphdef(abstract)
    return Frozen(params=params, graphdef=graphdef, config=abstract.config, replicated=replicate)


def _begin(
    one: Laid, reader: Reader, tensors: Mapping[str, Tensor], dtype: np.dtype, where: str
) -> tuple[int, Callable[[], Any]]:
    """Begins to read a parameter: its bytes on the host, and what waits for it and places it."""
    begin = functools.partial(_begin_tensor, reader, str(one.place), where=where)
    end: Callable[[], Any]
    if one.form is None:
        end = begin(one.place.bind(tensors), dtype, one.at)
    else:
        end = one.form.load(begin, dtype, one.at)
    size = math.prod(one.parameter.get_value().shape) * dtype.itemsize
    return size, end


def _begin_tensor(
    reader: Reader,
    name: str,
    tensor: Tensor,
    dtype: np.dtype,
    placement: NamedSharding | None,
    where: str,
) -> Callable[[], jax.Array]:
    """Begins to read one tensor; what is returned puts it on its device or devices."""
    view = tensor.read()

    def check(part: np.ndarray) -> None:
        if not _finite(part):
            raise CheckpointError(
                f"{where}: {name} holds NaN or infinity (as {dtype}); the weights are damaged."
            )

    if placement is None:
        box = reader.begin(view, (), dtype, check)
        # Transfers are asynchronous: waiting keeps no more than is read ahead in host memory.
        return lambda: jax.device_put(box.wait()).block_until_ready()
    # Devices along the data axis hold the same slice, which is read once.
    key = lambda index: tuple(s.indices(n)[:2] for s, n in zip(index, tensor.shape))
    boxes: dict[tuple[tuple[int, int], ...], Box] = {}
    places: Any = placement.addressable_devices_indices_map(tensor.shape).values()
    for index in places:
        if key(index) not in boxes:
            boxes[key(index)] = reader.begin(view, index, dtype, check)

    def place() -> jax.Array:
        put = lambda index: boxes[key(index)].wait()
        array = jax.make_array_from_callback(tensor.shape, placement, put, dtype=dtype)
        return array.block_until_ready()

    return place


def _finite(array: np.ndarray) -> bool:
    """No NaN or infinity: of either sign they are the largest patterns of bits."""
    if array.dtype.itemsize == 1 or not array.size:
        return kept.finite(array)
    size, first = array.dtype.itemsize, 0x7F80 if array.dtype.itemsize == 2 else 0x7F800000
    positive, negative = array.view(f"i{size}"), array.view(f"u{size}")
    return bool(positive.max() < first and negative.max() < first + (1 << (8 * size - 1)))
