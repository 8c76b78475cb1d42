"""What training changes: the parameters, the optimizer's moments, and how many steps were taken.

Parameters are a flat dict from tensor name to array, the names being those of the checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh

from specjax.core.sharding import RULES, axes_of, named, of_parameter, pieces
from specjax.core.types import Array, pytree
from specjax.models.frozen import Frozen

Params = dict[str, Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Skeleton:
    """A model without its weights: what turns a flat dict of parameters back into a module."""

    graphdef: Any
    treedef: Any
    axes: Mapping[str, tuple[str | None, ...]]  # logical axes by name, in the order of the leaves

    @classmethod
    def of(cls, module: nnx.Module) -> tuple[Skeleton, Params]:
        graphdef, state = nnx.split(module)
        leaves, treedef = jax.tree.flatten(state)
        axes = {
            ".".join(map(str, path)): axes_of(param) for path, param in nnx.to_flat_state(state)
        }
        return cls(graphdef, treedef, axes), dict(zip(axes, leaves, strict=True))

    def module(self, params: Params, dtype: jnp.dtype | None = None) -> Any:
        """The module with these weights, cast to ``dtype`` where one is given."""
        return nnx.merge(self.graphdef, self._state(params, dtype))

    def frozen(self, params: Params, config: Any, dtype: jnp.dtype | None = None) -> Frozen:
        """The same for inference: with one graph definition, so that nothing compiles anew."""
        return Frozen(params=self._state(params, dtype), graphdef=self.graphdef, config=config)

    def _state(self, params: Params, dtype: jnp.dtype | None) -> Any:
        leaves = [
            params[name] if dtype is None else params[name].astype(dtype) for name in self.axes
        ]
        return jax.tree.unflatten(self.treedef, leaves)


@pytree
class TrainState:
    """What is trained. A checkpoint holds this and the position in the data."""

    step: Array  # [] int32, optimizer steps taken
    params: Params  # float32
    opt_state: Any


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def place(state: TrainState, skeleton: Skeleton) -> TrainState:
    """The state on the devices of the mesh in use, if there is one."""
    mesh = jax.sharding.get_mesh()
    return state if mesh.empty else jax.device_put(state, state_shardings(state, skeleton, mesh))


def shardings_of(state: TrainState) -> TrainState | None:
    """Where a placed state lies, for `step.make_step`; None: on one device."""
    mesh = jax.sharding.get_mesh()
    where: TrainState | None = jax.tree.map(lambda x: x.sharding, state)
    return None if mesh.empty else where


def _divides(mesh: Mesh | AbstractMesh, axis: str | None, size: int) -> bool:
    return axis not in RULES or size % pieces(axis, mesh) == 0


def state_shardings(state: TrainState, skeleton: Skeleton, mesh: Mesh | AbstractMesh) -> TrainState:
    """Moments are sharded like their parameter; counters are replicated.

    So is an axis that the mesh does not divide: a small draft may have fewer heads than devices.
    """

    def of(path: tuple[Any, ...], leaf: Array) -> jax.sharding.NamedSharding:
        for key in reversed(path):
            axes = skeleton.axes.get(str(getattr(key, "key", "")))
            if axes is not None and leaf.ndim == len(axes):
                fit = (a if _divides(mesh, a, n) else None for n, a in zip(leaf.shape, axes))
                return of_parameter(mesh, tuple(fit), leaf.shape)
        return named(mesh, ())

    return jax.tree_util.tree_map_with_path(of, state)
