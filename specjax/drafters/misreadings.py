"""Ways to misread a checkpoint that several kinds share: taps, rotary base, the kind of norms."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.drafters.spec import Misreading, Trial
from specjax.models.config import UNNORMED
from specjax.models.frozen import Frozen
from specjax.models.layers.norm import RMSNorm, ZeroCentredNorm
from specjax.models.target import Target

TARGETS_ROPE = "the target's rotary base and scaling"


def reread(net: Frozen, **changes: Any) -> Frozen:
    """The same weights under a config with other constants (none that changes a shape)."""
    module = net.module  # merged anew: changing it leaves ``net`` as it is
    module.config = dataclasses.replace(module.config, **changes)
    return net.with_module(module)


def trial(what: str, means: str, spec: Any, **changes: Any) -> Trial:
    """A `Trial` of ``spec`` whose network is read with other constants."""
    return Trial(what, means, dataclasses.replace(spec, net=reread(spec.net, **changes)))


def taps(spec: Any, target: Target) -> Misreading:
    """The taps a layer lower and higher; the config has ``taps``, indices into hidden_states."""
    said, last, trials = spec.net.config.taps, target.config.num_layers, []
    for step, word in ((1, "higher"), (-1, "lower")):
        moved = tuple(t + step for t in said)
        if UNNORMED not in said and all(0 <= t <= last for t in moved):
            shift = "outputs of layers" if step > 0 else "inputs of layers (hidden_states)"
            means = (
                f"this checkpoint numbers its taps as {shift}, unlike what its format says: "
                f"{'add 1 to' if step > 0 else 'subtract 1 from'} the layer ids in its config.json"
            )
            trials.append(trial(f"taps one {word}", means, spec, taps=moved))
    names = ("before the final norm" if t == UNNORMED else str(t) for t in said)
    listed = ", ".join(names)
    cause = f"Taps off by one: it reads hidden_states {listed} of {last} layers"
    return Misreading(cause, tuple(trials))


def rope(spec: Any, target: Target) -> Misreading:
    """The target's rotary base; for a config with a ``backbone``, a `DecoderConfig`."""
    backbone, theirs = spec.net.config.backbone, target.config.rope
    ours, trials = backbone.rope, []
    if ours != theirs:
        means = "it was trained with them: write rope_theta and the scaling into its config.json"
        other = dataclasses.replace(backbone, rope=theirs)
        trials.append(trial(TARGETS_ROPE, means, spec, backbone=other))
    cause = (
        f"Rotary embedding: base {ours.theta:g}, {_scaling(ours)}; the target has "
        f"{theirs.theta:g}, {_scaling(theirs)}, which it need not share"
    )
    return Misreading(cause, tuple(trials))


def norms(spec: Any) -> Misreading:
    """The gain of a norm is w, or 1 + w: the other than it is read as."""
    own = jax.tree.map(lambda x: x, spec.net.params)  # what is set below is not the spec's
    module = dataclasses.replace(spec.net, params=own).module
    found = [m for _, m in nnx.iter_modules(module) if isinstance(m, RMSNorm)]
    if not found:
        return Misreading("Norms: it has none")
    centred = isinstance(found[0], ZeroCentredNorm)
    mean = float(jnp.mean(jnp.stack([m.weight[...].mean() for m in found])))
    for norm in found:
        norm.weight[...] = norm.weight[...] + (-1 if centred else 1)
    said, other = ("1 + w", "w") if centred else ("w", "1 + w")
    what = f"norms of {other}"
    means = (
        f"its file holds w of norms whose gain is {other}, unlike what its format says: "
        f"{'subtract 1 from' if centred else 'add 1 to'} the weights of its norms"
    )
    read = dataclasses.replace(spec, net=spec.net.with_module(module))
    cause = f"Norms: their gain is {said}, and the mean of w is {mean:.2g}"
    return Misreading(cause, (Trial(what, means, read),), likely=(mean > 0.5) == centred)


def _scaling(rope: Any) -> str:
    return "no scaling" if rope.scaling is None else type(rope.scaling).__name__
