"""A trained network with narrower MLPs: the neurons that matter least are left out.

Structured pruning by weights alone (as of filters: Li et al. 2017, arXiv:1608.08710), to train on
from there: a drafter that is cheaper than the one it began as.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from specjax.core.types import Array
from specjax.models.frozen import Frozen
from specjax.models.layers.attention import MLP


def narrowed(net: Frozen, intermediate_size: int) -> Frozen:
    """``net`` with MLPs of ``intermediate_size`` neurons, those of the largest weights.

    A neuron's size is the product of the norms of its rows of gate and up, behind the gain of the
    norm before them, and of its column of down. What is left out is taken to be nothing.

    Raises:
      ValueError: if the network has no such MLPs, has biases in them, or has fewer neurons.
    """
    layers = getattr(net.module, "layers", [])
    if not layers or not all(isinstance(getattr(layer, "mlp", None), MLP) for layer in layers):
        raise ValueError("Only a network of layers with gated MLPs can be narrowed.")
    backbone = getattr(net.config, "backbone", net.config)
    if not hasattr(backbone, "intermediate_size") or not hasattr(backbone, "mlp_bias"):
        raise ValueError("A network whose config names no intermediate_size cannot be narrowed.")
    if backbone.mlp_bias or not 1 <= intermediate_size <= backbone.intermediate_size:
        raise ValueError(
            f"An MLP of {backbone.intermediate_size} neurons"
            f"{' with biases' if backbone.mlp_bias else ''} cannot be narrowed to "
            f"{intermediate_size}: choose an intermediate_size that it has, or leave it out."
        )
    module = net.module  # merged anew by each call: changing it leaves ``net`` as it is
    for layer in module.layers:
        mlp = layer.mlp
        kept = _largest(mlp, layer.post_attention_layernorm.weight[...], intermediate_size)
        for linear, axis in ((mlp.gate_proj, 0), (mlp.up_proj, 0), (mlp.down_proj, 1)):
            weight = linear.weight
            linear.weight = weight.replace(jnp.take(weight[...], kept, axis=axis))
    config = _resized(net.config, intermediate_size)
    made = nnx.eval_shape(
        lambda: type(module)(config, dtype=jnp.float32, rngs=nnx.Rngs(0))  # names and sizes only
    )
    nnx.update(made, nnx.state(module))
    return dataclasses.replace(Frozen.of(made), replicated=net.replicated)


def _largest(mlp: MLP, gain: Array, count: int) -> Array:
    """The ``count`` largest neurons, in their order: [count] int32."""
    norm = lambda w, axis: jnp.linalg.norm(w.astype(jnp.float32), axis=axis)
    reading = [norm(p.weight[...] * gain[None, :], 1) for p in (mlp.gate_proj, mlp.up_proj)]
    size = reading[0] * reading[1] * norm(mlp.down_proj.weight[...], 0)
    return jnp.sort(jnp.argsort(-size)[:count])


def _resized(config: Any, intermediate_size: int) -> Any:
    if hasattr(config, "backbone"):
        return dataclasses.replace(config, backbone=_resized(config.backbone, intermediate_size))
    return dataclasses.replace(config, intermediate_size=intermediate_size)
