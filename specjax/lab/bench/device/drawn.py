"""Weights that are drawn where they are used."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.models import Frozen
from specjax.models import family as registered
from specjax.models.joining import join


def random_net(raw: dict[str, Any], dtype: Any) -> Frozen:
    """A model with random weights that never were on the host; one small program a shape."""
    family = registered(raw["model_type"])
    config = family.read_config(raw)
    abstract = nnx.eval_shape(lambda: family(config, dtype=dtype, rngs=nnx.Rngs(0)))
    join(abstract)
    graphdef, state = nnx.split(abstract)
    leaves, treedef = jax.tree.flatten(state)
    key = jax.random.key(0)
    drawn = [
        draw(jax.random.fold_in(key, i), leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)
    ]
    return Frozen(params=jax.tree.unflatten(treedef, drawn), graphdef=graphdef, config=config)


def draw(key: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Gains around 1, matrices that keep the size of what they are applied to."""
    mean, scale = (1.0, 0.1) if len(shape) == 1 else (0.0, math.prod(shape[1:]) ** -0.5)
    return _normal(key, mean, scale, shape=shape, dtype=jnp.dtype(dtype))


def _draw_normal(key: Any, mean: Any, scale: Any, *, shape: tuple[int, ...], dtype: Any) -> Any:
    return (mean + scale * jax.random.normal(key, shape)).astype(dtype)


_normal = jax.jit(_draw_normal, static_argnames=("shape", "dtype"))
