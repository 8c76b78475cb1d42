"""How many experts of a mixture several tokens go to together: what a verify pass reads of them.

One token reads k of the E experts of a layer. The K + 1 tokens of a verify pass read the union of
theirs, so that accepting more guesses costs more bytes: on a mixture the speedup is tau against
that union.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.checkpoint.load import Model
from specjax.core import hosts, sharding
from specjax.core.types import Array
from specjax.models import Frozen


def distinct(target: Model, texts: Sequence[Sequence[int]], widths: Sequence[int]) -> list[float]:
    """The mean number of distinct experts a layer that neighbouring tokens of a text go to.

    Args:
      target: with mixtures of experts.
      texts: token ids, as the target wrote or read them; each is fed in one pass.
      widths: numbers of neighbouring tokens; a text shorter than one says nothing of it.

    Raises:
      ValueError: if the target has no experts, or no text is as long as the widest.
    """
    if not hasattr(target.config, "mixture"):
        raise ValueError(f"{target.name} has no experts.")
    if max(map(len, texts), default=0) < max(widths):
        raise ValueError(f"No text has the {max(widths)} tokens that are looked at together.")
    counts: dict[int, list[float]] = {width: [] for width in widths}
    num = target.config.mixture.num
    for text in texts:
        tokens = jnp.asarray(text, jnp.int32)[None]
        with sharding.use_mesh(target.mesh):
            chosen = np.asarray(hosts.fetch(_chosen(target.net, tokens)))  # [L, S, k]
        hit = np.zeros((*chosen.shape[:2], num), bool)
        np.put_along_axis(hit, chosen, True, axis=-1)
        for width in widths:
            for start in range(len(text) - width + 1):
                counts[width] += hit[:, start : start + width].any(1).sum(-1).tolist()
    return [float(np.mean(counts[width])) for width in widths]


@jax.jit
def _chosen(net: Frozen, tokens: Array) -> Array:
    """The experts [L, S, k] of layers with a mixture, of one text [1, S]."""
    found: list[Array] = []
    module = net.module  # merged anew: changing it leaves ``net`` as it is
    for layer in module.layers:
        if hasattr(layer.mlp, "router"):
            layer.mlp.router = _Watched(layer.mlp.router, found)
    module(tokens)
    return jnp.concatenate(found)


class _Watched:
    """A router that writes down what it chooses."""

    def __init__(self, router: Any, found: list[Array]):
        self._router, self._found = router, found

    def __call__(self, x: Array) -> tuple[Array, Array]:
        chosen, weights = self._router(x)
        self._found.append(chosen)
        return chosen, weights
