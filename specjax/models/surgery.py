"""Weights of one network put into another: to train on from there.

`warm_start` takes all of them, by name; `start_from` a target's last layers for a draft; `narrowed`
leaves out the neurons of MLPs that matter least.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from specjax.core.types import Array
from specjax.models.frozen import Frozen
from specjax.models.joining import separate, separated
from specjax.models.layers.attention import MLP, Attention
from specjax.models.layers.norm import RMSNorm, ZeroCentredNorm
from specjax.models.target import Target


def warm_start(params: dict[str, Array], net: Frozen) -> dict[str, Array]:
    """``params`` with the values of ``net``'s, by name.

    Raises:
      ValueError: if the two differ in names or shapes.
    """
    flat = nnx.to_flat_state(separated(net).params)
    given = {".".join(map(str, path)): param[...] for path, param in flat}
    ours, theirs = ({n: p.shape for n, p in tree.items()} for tree in (params, given))
    if ours != theirs:
        differing = sorted(n for n in {*ours, *theirs} if ours.get(n) != theirs.get(n))
        raise ValueError(
            f"--config.init: the model there differs from --config.model in {differing[0]} and "
            f"{len(differing) - 1} other tensors; give the sizes of its config.json."
        )
    return {name: given[name].astype(p.dtype) for name, p in params.items()}


def start_from(net: Frozen, target: Target) -> Frozen:
    """``net`` with the weights of the target's last layers and final norm, where it has room.

    The fused context begins as the last tap, normed as the target's last layer norms its input:
    the draft then attends to keys and values close to the target's own. Where the target has no
    norm on its heads, the draft's begin with the size that its queries and keys have.

    Raises:
      ValueError: if the sizes differ.
    """
    config, module, theirs = net.config, net.module, target.net.module
    ours, full = config.backbone, target.config
    same = ("hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim")
    if not ends_dense(target, ours.num_layers):
        raise ValueError(
            f"A draft can begin as the last layers of {target.name} only where those are dense "
            "attention and gated MLPs behind plain norms: say from_target=False "
            "(--config.sizes.from_target=False)."
        )
    differing = [f for f in same if getattr(ours, f) != getattr(full, f, None)]
    if differing or ours.num_layers > full.num_layers or full.kv_repeat > 1:
        raise ValueError(
            f"A draft that begins as {target.name}'s last layers has its sizes, on one device; "
            f"differing: {', '.join(differing) or 'layers'}."
        )
    value = lambda param: param[...].astype(target.dtype)
    for layer, source in zip(module.layers, theirs.layers[-ours.num_layers :]):
        separate(source)
        gain = value(source.input_layernorm.weight).astype(jnp.float32)
        for name in ("input_layernorm", "post_attention_layernorm"):
            getattr(layer, name).weight[...] = value(getattr(source, name).weight)
        for name in ("gate_proj", "up_proj", "down_proj"):
            getattr(layer.mlp, name).weight[...] = value(getattr(source.mlp, name).weight)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weight = value(getattr(source.self_attn, name).weight)
            getattr(layer.self_attn, name).weight[...] = weight
        for name in ("q", "k"):
            norm = getattr(layer.self_attn, f"{name}_norm").weight
            if source.self_attn.head_norm:
                norm[...] = value(getattr(source.self_attn, f"{name}_norm").weight)
                continue
            weight = value(getattr(source.self_attn, f"{name}_proj").weight).astype(jnp.float32)
            size = jnp.sqrt(((weight * gain[None, :]) ** 2).sum() / weight.shape[0])
            norm[...] = jnp.full_like(norm[...], size)
    fused = module.fc.weight
    last = jnp.eye(ours.hidden_size, config.target_hidden_size, dtype=target.dtype)
    rest = 0.1 * fused[...][:, : -config.target_hidden_size]
    fused[...] = jnp.concatenate([rest, last], axis=1)
    module.hidden_norm.weight[...] = value(theirs.layers[-1].input_layernorm.weight)
    module.norm.weight[...] = value(theirs.norm.weight)
    return net.with_module(module)


def ends_dense(target: Target, num_layers: int) -> bool:
    """Whether the target's last layers are such as a draft has, so that it can begin as they are.

    Dense attention and gated MLPs, without gates or sinks of their own, behind plain norms.
    """
    return all(map(_is_plain, target.net.module.layers[-num_layers:]))


def _is_plain(layer: Any) -> bool:
    mlp, mixing = getattr(layer, "mlp", None), getattr(layer, "self_attn", None)
    norms = [n for n in vars(layer).values() if isinstance(n, RMSNorm)]
    return (
        isinstance(mlp, MLP)
        and isinstance(mixing, Attention)
        and not (mixing.gated or mixing.has_sinks)
        and len(norms) == 2
        and not any(isinstance(norm, ZeroCentredNorm) for norm in norms)
    )


def narrowed(net: Frozen, intermediate_size: int) -> Frozen:
    """``net`` with MLPs of ``intermediate_size`` neurons, those of the largest weights.

    Structured pruning by weights alone, as Li et al. 2017 (arXiv:1608.08710) do with filters.
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
    net = separated(net)
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
    return net.with_module(made)


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
