"""Gumbel noise, drawn in one place so that all who share it agree bit for bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from specjax.core.ops import argmax
from specjax.core.platform import Platform
from specjax.core.types import Array


def gumbel_argmax(key: Array, logits: Array, platform: Platform | None = None) -> Array:
    """A sample of softmax(logits) by the Gumbel-max trick.

    A coupled drafter and the coupled rule both call this function: with the same key and the same
    logits they agree bit for bit, ties included.

    Args:
      key: consumed. For coupling, the key of the token's absolute position.
      logits: [V] float, unnormalised; -inf excludes a token.
      platform: that it is written for, see `core.ops`; None: JAX's default devices.

    Returns:
      [] int32. The lowest index wins ties.
    """
    return argmax(logits + gumbel(key, logits), platform=platform)


def gumbel(key: Array, logits: Array) -> Array:
    """[V] noise for ``logits`` [V], which only give its size and dtype. ``key`` is consumed."""
    # The draw has one dtype everywhere, so that a float64 run sees the noise of a float32 one.
    return jax.random.gumbel(key, logits.shape, jnp.float32).astype(logits.dtype)
