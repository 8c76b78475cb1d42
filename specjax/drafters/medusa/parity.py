"""The arrays of a golden file of Medusa heads, computed here: see `Spec.outputs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core.types import Array
from specjax.drafters.tapped import tapped
from specjax.models.target import Target


def outputs(
    target: Target, spec: Any, golden: Mapping[str, np.ndarray], prompt: np.ndarray
) -> dict[str, Array]:
    features = tapped(target.net, jnp.asarray(prompt), (target.config.num_layers,))
    logits = jax.jit(lambda net, h: net.module(h, net.config.num_heads))
    heads = logits(spec.net, jnp.asarray(golden["features"]))
    return {"features": features, "medusa_logits": heads.swapaxes(0, 1)}
