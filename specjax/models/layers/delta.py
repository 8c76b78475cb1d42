"""Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464) as Qwen3.5 has it.

m       = W_qkv x                                   queries, keys and values of all heads
q, k, v = silu(causal convolution of m)             each channel for itself
q, k    = q / |q| / sqrt(Dk), k / |k|               a head of each is shared by several of v
g, beta = -exp(A_log) softplus(W_a x + dt_bias), sigmoid(W_b x)        one of each a head
o       = the delta rule with decay g and strength beta (core.cache.recurrent)
y       = W_out (RMSNorm(o) * silu(W_z x))
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.core.cache import Part, Recurrent
from specjax.core.cache.block import join
from specjax.core.ops import apart
from specjax.core.types import Array
from specjax.models.layers.joined import Joining
from specjax.models.layers.linear import Linear
from specjax.models.layers.norm import RMSNorm
from specjax.models.layers.placed import Placed
from specjax.models.layers.reading import Reading


@dataclasses.dataclass(frozen=True)
class DeltaConfig:
    """Sizes of one layer. Value head n reads key head ``n // (value_heads / key_heads)``."""

    hidden_size: int
    key_heads: int
    value_heads: int
    key_head_dim: int
    value_head_dim: int
    taps: int  # of the convolution, the token's own included
    rms_norm_eps: float

    @property
    def channels(self) -> int:
        """How many channels the convolution has: queries, keys, values."""
        return 2 * self.key_heads * self.key_head_dim + self.value_heads * self.value_head_dim


class Conv1d(nnx.Module):
    """The weights [C, 1, taps] of a causal convolution, the last for the token itself."""

    def __init__(self, channels: int, taps: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        init = jax.random.normal(rngs.params(), (channels, 1, taps)) * taps**-0.5
        self.weight = nnx.Param(init.astype(dtype), axes=("heads", None, None))


class GatedDeltaNet(Joining, Placed):
    """Attributes are named as the checkpoints' tensors: ``linear_attn.in_proj_qkv.weight``."""

    joints: ClassVar = {"in_proj": ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b")}

    def __init__(self, config: DeltaConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        c = config
        width, inner = c.hidden_size, c.value_heads * c.value_head_dim
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.in_proj_qkv = Linear(width, c.channels, axes=("heads", None), **kwargs)
        self.in_proj_z = Linear(width, inner, axes=("heads", None), **kwargs)
        self.in_proj_a = Linear(width, c.value_heads, axes=("heads", None), **kwargs)
        self.in_proj_b = Linear(width, c.value_heads, axes=("heads", None), **kwargs)
        self.conv1d = Conv1d(c.channels, c.taps, **kwargs)
        decays = jax.random.uniform(rngs.params(), (c.value_heads,), minval=0.01, maxval=16.0)
        # Published in either type; these three are kept in full, whatever the others are.
        marks: dict[str, Any] = {"axes": ("heads",), "precise": True}
        self.A_log = nnx.Param(jnp.log(decays), **marks)
        self.dt_bias = nnx.Param(jnp.ones((c.value_heads,), jnp.float32), **marks)
        self.norm = RMSNorm(c.value_head_dim, eps=c.rms_norm_eps, precise=True, **kwargs)
        self.out_proj = Linear(inner, width, axes=(None, "heads"), **kwargs)
        self.config = c

    def init_entry(self, rows: int, slots: int, dtype: jnp.dtype) -> Recurrent:
        """An empty memory, the same for texts of any length."""
        del slots
        c = self.config
        return Recurrent.empty(
            rows,
            c.value_heads,
            c.key_head_dim,
            c.value_head_dim,
            channels=c.channels,
            taps=c.taps,
            dtype=dtype,
            axis=self.axis("heads"),
        )

    def __call__(
        self, x: Array, entry: Recurrent, before: Part | None, reading: Reading
    ) -> tuple[Array, Part]:
        """[B, T, D] -> [B, T, D], and what ``entry`` must commit of it.

        ``before`` is that of the block's P tokens that were fed earlier.
        """
        inputs, z, a, b = self._project(x)
        fed, rest = (None, None) if before is None else (before[0], before[1:])
        q, k, v = self._heads(entry, join(fed, inputs), reading)
        decay, beta = self._gates(a, b)
        out, part = entry.recur(q, k, v, decay, beta, rest, reading.view)
        gate = _split(z, self.config.value_heads).astype(jnp.float32)
        out = (self.norm(out.astype(jnp.float32)) * jax.nn.silu(gate)).astype(x.dtype)
        rows, _, num_tokens, _ = out.shape
        return self.out_proj(out.swapaxes(1, 2).reshape(rows, num_tokens, -1)), (inputs, *part)

    def _project(self, x: Array) -> tuple[Array, ...]:
        if self.is_joined("in_proj"):
            return self.products("in_proj", x)
        further = apart(x, platform=self.platform)
        last = apart(further, platform=self.platform)
        wide, z = self.in_proj_qkv(x), self.in_proj_z(further)
        return wide, z, self.in_proj_a(last), self.in_proj_b(last)

    def _heads(
        self, entry: Recurrent, inputs: Array, reading: Reading
    ) -> tuple[Array, Array, Array]:
        """Queries, keys [B, N, T, Dk] and values [B, N, T, Dv], float32, N heads of values."""
        c = self.config
        kernel = self.conv1d.weight[...][:, 0].T.astype(jnp.float32)  # [taps, C]
        mixed = jax.nn.silu(entry.convolve(inputs, kernel, reading.view))
        width = c.key_heads * c.key_head_dim
        q, k, v = jnp.split(mixed, [width, 2 * width], axis=-1)
        repeats = c.value_heads // c.key_heads

        def spread(x: Array) -> Array:
            x = jnp.repeat(_unit(_split(x, c.key_heads)), repeats, axis=1)
            return self.constrain(x, "batch", "heads", None, None)

        v = self.constrain(_split(v, c.value_heads), "batch", "heads", None, None)
        return c.key_head_dim**-0.5 * spread(q), spread(k), v

    def _gates(self, a: Array, b: Array) -> tuple[Array, Array]:
        """Logarithms of the decays, and strengths, [B, N, T, 1] float32."""
        bias, speed = (p[...].astype(jnp.float32)[None, None] for p in (self.dt_bias, self.A_log))
        decay = -jnp.exp(speed) * jax.nn.softplus(a.astype(jnp.float32) + bias)
        beta = jax.nn.sigmoid(b.astype(jnp.float32))
        return _split(decay, self.config.value_heads), _split(beta, self.config.value_heads)


def _split(x: Array, heads: int) -> Array:
    """[B, T, N * H] -> [B, N, T, H]."""
    rows, num_tokens, _ = x.shape
    return x.reshape(rows, num_tokens, heads, -1).swapaxes(1, 2)


def _unit(x: Array) -> Array:
    """Vectors of length 1."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)
