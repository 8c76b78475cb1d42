"""Matrices as checkpoints pack them, as shapes: what programs that keep them are compiled for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from specjax.checkpoint.laid import is_quantised
from specjax.core import sharding
from specjax.core.quantised import Quantised, axes_of

# Neighbours that share a factor, the types of values and factors: gpt-oss, Kimi-K2 and DeepSeek-V3
# as they are published.
FORMATS: dict[str, tuple[int, Any, Any]] = {
    "mxfp4": (32, jnp.float4_e2m1fn, jnp.float8_e8m0fnu),
    "int4": (32, jnp.int4, jnp.bfloat16),
    "fp8": (128, jnp.float8_e4m3fn, jnp.float32),
}


def packed_shapes(params: Any, name: str, mesh: Mesh | None) -> Any:
    """The parameters with those packed that such a checkpoint packs; groups shrink to fit.

    Of 4 bits they are the experts, where there are any: the rest of those models is bfloat16.
    """
    flat = nnx.to_flat_state(params)
    mixture = any("experts" in path for path, _ in flat) and name != "fp8"
    made = []
    for path, parameter in flat:
        if is_quantised(path, parameter) and ("experts" in path or not mixture):
            parameter = parameter.replace(_packed(parameter, name, mesh))
        made.append((path, parameter))
    return nnx.from_flat_state(made)


def _packed(parameter: nnx.Param, name: str, mesh: Mesh | None) -> Quantised:
    value, axes = parameter.get_value(), sharding.axes_of(parameter)
    group, stored, factor = FORMATS[name]
    *lead, width = value.shape
    where = None if mesh is None else sharding.named(mesh, axes)
    local = width if where is None else where.shard_shape(value.shape)[-1]
    while local % group:
        group //= 2
    shapes = {
        "values": (value.shape, stored),
        "factors": ((*lead, width // group), factor),
    }
    put: dict[str, Any] = {
        piece: jax.ShapeDtypeStruct(
            *shapes[piece], sharding=None if mesh is None else sharding.named(mesh, of)
        )
        for piece, of in axes_of(axes, width // group, False).items()
    }
    return Quantised(**put, dtype=value.dtype)
