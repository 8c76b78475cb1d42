"""The heads of Medusa (Cai et al. 2024, arXiv:2401.10774).

Head i guesses the token i + 2 places behind the one whose final state h it is given (the target's
own head guesses the next one):

    h <- h + silu(W h + b)        num_layers blocks, W zero at first
    logits_i = W_i h
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.core.ops import activation_dtype, linear
from specjax.core.types import Array
from specjax.models.layers.linear import Linear
from specjax.models.layers.placed import Placed


@dataclasses.dataclass(frozen=True)
class MedusaConfig:
    hidden_size: int  # the target's
    vocab_size: int  # the target's
    num_heads: int
    num_layers: int = 1  # blocks of a head


class ResBlock(nnx.Module):
    """``h + silu(W h + b)``."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.linear = Linear(width, width, axes=(None, None), bias=True, dtype=dtype, rngs=rngs)
        self.linear.weight[...] = jnp.zeros((width, width), dtype)

    def __call__(self, h: Array) -> Array:
        return h + jax.nn.silu(self.linear(h))


class MedusaHead(Placed):
    def __init__(self, config: MedusaConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.blocks = nnx.List(
            [ResBlock(config.hidden_size, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)]
        )
        self.output = Linear(
            config.hidden_size, config.vocab_size, axes=("vocab", None), dtype=dtype, rngs=rngs
        )

    def __call__(self, h: Array) -> Array:
        """[..., D] -> logits [..., V] float32."""
        for block in self.blocks:
            h = block(h)
        logits = linear(h, self.output.weight.get_value(), platform=self.platform)
        return self.constrain(logits, "batch", *[None] * (logits.ndim - 2), "vocab")


class MedusaNet(Placed):
    def __init__(self, config: MedusaConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        self.heads = nnx.List(
            [MedusaHead(config, dtype=dtype, rngs=rngs) for _ in range(config.num_heads)]
        )

    @property
    def dtype(self) -> jnp.dtype:
        """The type of the states."""
        return activation_dtype(self.heads[0].output.weight.get_value().dtype, self.platform)

    def __call__(self, h: Array, num_heads: int) -> Array:
        """Final states of the target [..., D] -> logits [..., num_heads, V] float32."""
        h = h.astype(self.dtype)
        return jnp.stack([head(h) for head in self.heads[:num_heads]], axis=-2)
