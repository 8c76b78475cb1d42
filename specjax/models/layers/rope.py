"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), half-split pairs.

Feature i is rotated together with feature i + H/2, as in every checkpoint that Hugging Face
publishes for these families. Angles are float32.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from specjax.core.types import Array


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """The frequency scaling of Llama 3.1 (``rope_type: llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class Rope:
    """theta and, where there is one, a frequency scaling."""

    theta: float
    scaling: Llama3Scaling | None = None

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Angles per position [H/2], float64; computed once, at trace time."""
        freqs = self.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        if self.scaling is None:
            return freqs
        s = self.scaling
        wavelength = 2 * math.pi / freqs
        turns = s.original_max_position_embeddings / wavelength
        # Long waves are slowed by the factor, short ones kept, those between blended.
        blend = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
        blend = np.clip(blend, 0.0, 1.0)
        return (1 - blend) * freqs / s.factor + blend * freqs


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Cosines and sines of one forward pass, shared by all its layers."""

    cos: Array  # [B, 1, T, H] float32, over heads
    sin: Array  # [B, 1, T, H] float32, its first half negated

    def __call__(self, x: Array) -> Array:
        """Rotates ``x`` [B, N, T, H]."""
        full = x.astype(jnp.float32)
        half = x.shape[-1] // 2
        swapped = jnp.concatenate([full[..., half:], full[..., :half]], axis=-1)
        cos = jnp.broadcast_to(self.cos, x.shape)
        sin = jnp.broadcast_to(self.sin, x.shape)
        return (full * cos + swapped * sin).astype(x.dtype)


def rotation(rope: Rope, positions: Array, head_dim: int) -> Rotation:
    """The rotation at ``positions`` [B, T]."""
    freqs = jnp.asarray(rope.frequencies(head_dim), jnp.float32)
    angles = positions.astype(jnp.float32)[:, None, :, None] * freqs[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return Rotation(
        cos=jnp.concatenate([cos, cos], axis=-1), sin=jnp.concatenate([-sin, sin], axis=-1)
    )
