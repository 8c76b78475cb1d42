"""What DFlash2 and DSpark add to a DFlash stack.

DFlash2 (Inco AI and Z Lab, inco.ai/blog/dflash2): grouped dynamic convolutions around each sublayer
and a selector that makes the guesses of a block agree with one another. DSpark (arXiv:2607.05147):
a low-rank Markov head and a head that estimates how likely a guess is to be accepted.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.core.ops import linear
from specjax.core.types import Array
from specjax.models.layers.linear import Linear
from specjax.models.layers.placed import Placed


class GroupedConv(nnx.Module):
    """Depthwise convolution over the slots of a block, its kernel partly computed from the input.

    ``out_t = sum_tap (base[side, tap] + delta_t[side, tap]) * z_{t - tap}``, with
    ``delta_t = P y_t`` constant within a group of channels, and nothing before the block. Side 0
    acts on the sublayer's input y itself, side 1 on its output, both with the delta of y.
    """

    def __init__(self, features: int, taps: int, group: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        if features % group:
            raise ValueError(f"conv_group_size={group} does not divide the width {features}.")
        self.taps, self.group = taps, group
        identity = jnp.zeros((2, taps, features), dtype).at[:, 0].set(1)
        self.base_kernel = nnx.Param(identity, axes=(None, None, None))
        self.kernel_projection = Linear(
            features, 2 * taps * (features // group), axes=(None, None), dtype=dtype, rngs=rngs
        )
        self.kernel_projection.weight[...] = jnp.zeros_like(self.kernel_projection.weight[...])

    def __call__(
        self, y: Array, offsets: Array
    ) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
        """The two sides for inputs ``y`` [B, T, D] at slots ``offsets`` [T] of their blocks."""
        delta = self.kernel_projection(y).reshape(*y.shape[:2], 2, self.taps, -1)
        delta = jnp.repeat(delta, self.group, axis=-1)  # [B, T, 2, taps, D]
        base = self.base_kernel[...].astype(y.dtype)

        def side(index: int) -> Callable[[Array], Array]:
            def apply(z: Array) -> Array:
                out = jnp.zeros_like(z)
                for tap in range(self.taps):
                    moved = jnp.pad(z, ((0, 0), (tap, 0), (0, 0)))[:, : z.shape[1]]
                    moved = jnp.where((offsets >= tap)[None, :, None], moved, 0)
                    out = out + (base[index, tap][None, None] + delta[:, :, index, tap]) * moved
                return out

            return apply

        return side(0), side(1)


class CandidateSelector(nnx.Module):
    """``S_t(a -> b) = U_t(b) + <A[a] * (W_g h_t), C[b]>`` over the likeliest b of each slot."""

    def __init__(
        self, vocab_size: int, features: int, rank: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        def table() -> nnx.Param[jax.Array]:
            init = 0.02 * jax.random.normal(rngs.params(), (vocab_size, rank))
            return nnx.Param(init.astype(dtype), axes=(None, None))

        self.predecessor_codebook = table()
        self.successor_codebook = table()
        self.hidden_projection = Linear(features, rank, axes=(None, None), dtype=dtype, rngs=rngs)

    def gate(self, h: Array) -> Array:
        """States [..., D] -> W_g h [..., r] float32."""
        return self.hidden_projection(h).astype(jnp.float32)

    def score(self, unary: Array, previous: Array, gate: Array, candidates: Array) -> Array:
        """Scores [..., C] of ``candidates`` [..., C] behind the token ``previous`` [...]."""
        before = self.predecessor_codebook[...][previous].astype(jnp.float32) * gate
        after = self.successor_codebook[...][candidates].astype(jnp.float32)
        return unary + (after * before[..., None, :]).sum(-1)


class Table(nnx.Module):
    """A bare matrix [V, r] called ``weight``."""

    def __init__(self, rows: int, rank: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        init = 0.02 * jax.random.normal(rngs.params(), (rows, rank))
        self.weight = nnx.Param(init.astype(dtype), axes=(None, None))


class MarkovHead(Placed):
    """Logits that depend on the token before: ``W_2 W_1[previous]``."""

    def __init__(self, vocab_size: int, rank: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.markov_w1 = Table(vocab_size, rank, dtype=dtype, rngs=rngs)
        self.markov_w2 = Table(vocab_size, rank, dtype=dtype, rngs=rngs)
        self.markov_w2.weight[...] = jnp.zeros_like(self.markov_w2.weight[...])

    def embed(self, previous: Array) -> Array:
        """Tokens [...] -> W_1 rows [..., r]."""
        return self.markov_w1.weight[...][previous]

    def __call__(self, previous: Array) -> Array:
        """Tokens [...] -> what is added to the logits [..., V] float32."""
        return linear(self.embed(previous), self.markov_w2.weight[...], platform=self.platform)


class ConfidenceHead(nnx.Module):
    """``sigmoid(w . [h ; W_1[previous]] + b)``: the chance that a guess is accepted."""

    def __init__(self, features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.proj = Linear(features, 1, axes=(None, None), bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """[..., D (+ r)] -> [...] float32 logits; their sigmoid is the chance."""
        return self.proj(x).astype(jnp.float32)[..., 0]
