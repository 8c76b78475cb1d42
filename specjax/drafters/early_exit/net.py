"""The adapter of an early exit: what the state behind a few layers lacks of the final one.

    h <- h + W_up silu(W_down h)        W_up zero at first

h is the state after the target's final norm, which the target's head reads then.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.core.types import Array
from specjax.models.layers.linear import Linear


@dataclasses.dataclass(frozen=True)
class ExitConfig:
    hidden_size: int  # the target's
    vocab_size: int  # the target's
    depth: int  # how many of the target's layers run
    rank: int  # of the adapter


class ExitNet(nnx.Module):
    def __init__(self, config: ExitConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, rank = config.hidden_size, config.rank
        self.config = config
        self.down = Linear(width, rank, axes=(None, None), dtype=dtype, rngs=rngs)
        self.up = Linear(rank, width, axes=(None, None), dtype=dtype, rngs=rngs)
        self.up.weight[...] = jnp.zeros((width, rank), dtype)

    def __call__(self, h: Array) -> Array:
        """[..., D] -> [..., D]."""
        return h + self.up(jax.nn.silu(self.down(h)))
