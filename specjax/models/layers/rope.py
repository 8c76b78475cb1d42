"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), half-split pairs.

Feature i is rotated together with feature i + H/2, as in every checkpoint that Hugging Face
publishes for these families. Angles are float32.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from specjax.core.ops import Rotation as Rotation
from specjax.core.types import Array


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """The frequency scaling of Llama 3.1 (``rope_type: llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Every position divided by the factor (``rope_type: linear``)."""

    factor: float


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, arXiv:2309.00071), with Transformers' defaults."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None  # None: from the factor, or the ratio of the mscales
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True  # the edges of the ramp are rounded to whole dimensions

    def magnitude(self, m: float) -> float:
        """By how much a longer context sharpens attention, to the power that ``m`` stands for."""
        return 1.0 if self.factor <= 1 else 0.1 * m * math.log(self.factor) + 1.0

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self.magnitude(self.mscale) / self.magnitude(self.mscale_all_dim)
        return self.magnitude(1.0)

    def kept(self, theta: float, head_dim: int) -> np.ndarray:
        """How much of each frequency [H/2] is kept as it is; the rest is divided by the factor."""

        def dimension(turns: float) -> float:
            """Where a frequency makes that many turns over the original context."""
            span = self.original_max_position_embeddings / (turns * 2 * math.pi)
            return head_dim * math.log(span) / (2 * math.log(theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        high = high + 0.001 if low == high else high
        found: np.ndarray = 1.0 - np.clip((np.arange(head_dim // 2) - low) / (high - low), 0.0, 1.0)
        return found


@dataclasses.dataclass(frozen=True)
class Rope:
    """theta and, where there is one, a frequency scaling."""

    theta: float
    scaling: Llama3Scaling | LinearScaling | YarnScaling | None = None
    partial: float = 1.0  # the share of a head's features, the first, that is rotated

    def rotary_dim(self, head_dim: int) -> int:
        """How many features of a head are rotated."""
        return int(head_dim * self.partial)

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by; 1 but for YaRN."""
        return self.scaling.amplitude if isinstance(self.scaling, YarnScaling) else 1.0

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Angles per position [H/2], float64; computed once, at trace time.

        H is ``head_dim``, or what of it is rotated.
        """
        head_dim = self.rotary_dim(head_dim)
        freqs = self.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        if self.scaling is None:
            return freqs
        s = self.scaling
        if isinstance(s, LinearScaling):
            return freqs / s.factor
        if isinstance(s, YarnScaling):
            kept = s.kept(self.theta, head_dim)
            return kept * freqs + (1 - kept) * freqs / s.factor
        wavelength = 2 * math.pi / freqs
        turns = s.original_max_position_embeddings / wavelength
        # Long waves are slowed by the factor, short ones kept, those between blended.
        blend = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
        blend = np.clip(blend, 0.0, 1.0)
        return (1 - blend) * freqs / s.factor + blend * freqs


def rotation(rope: Rope, positions: Array, head_dim: int) -> Rotation:
    """The rotation at ``positions`` [B, T]."""
    freqs = jnp.asarray(rope.frequencies(head_dim), jnp.float32)
    angles = positions.astype(jnp.float32)[:, None, :, None] * freqs[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if rope.amplitude != 1.0:
        cos, sin = rope.amplitude * cos, rope.amplitude * sin
    return Rotation(
        cos=jnp.concatenate([cos, cos], axis=-1), sin=jnp.concatenate([-sin, sin], axis=-1)
    )


def halved(x: Array) -> Array:
    """``x`` [..., H] of pairs (2i, 2i + 1), as some checkpoints have them, in the order of halves.

    Scores do not notice, where queries and keys are both put in that order.
    """
    return x.reshape(*x.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(x.shape)
