"""What a backward pass had better keep than compute again: products, and what attention gives.

All else between them (norms, rotations, activations, sums) is read from memory as slowly as it is
computed, and takes more of it: several arrays in float32 for one of a product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from specjax.core.types import Array

_NAME = "dear"


def dear(x: Array) -> Array:
    """``x``, marked. It costs nothing, and says nothing where nothing is differentiated."""
    marked: Array = checkpoint_name(x, _NAME)
    return marked


def keeping_dear(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, of which the backward pass computes again what is not marked."""
    policy = jax.checkpoint_policies.save_only_these_names(_NAME)
    found: Callable[..., Any] = jax.checkpoint(function, policy=policy)
    return found
