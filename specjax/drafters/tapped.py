"""The states that a target hands to its drafters, of a whole text at once."""

from __future__ import annotations

import functools

import jax

from specjax.core.types import Array
from specjax.models.frozen import Frozen


@functools.partial(jax.jit, static_argnames="taps")
def tapped(net: Frozen, tokens: Array, taps: tuple[int, ...]) -> Array:
    """[S] -> [S, F]."""
    features = net(tokens[None], taps=taps).features
    assert features is not None
    return features[0]
