"""Root mean square normalisation, and the sum with what a layer adds in front of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from specjax.core.ops.op import Timed, differentiated_as
from specjax.core.platform import Platform
from specjax.core.sharding import fitting
from specjax.core.types import Array

_WIDEST = 1 << 14  # numbers of a vector, which a program of the kernel keeps in registers


@dataclasses.dataclass(frozen=True)
class Norm:
    """``gain * n(x)`` with ``n(x) = x / sqrt(mean(x^2) + eps)`` in float32; see `models.norm`."""

    eps: float
    early: bool = True  # n(x) is rounded to the type of x before it is multiplied, the gain as well
    one: bool = False  # the gain is 1 + w; else it is w

    def __call__(self, x: Array, weight: Array) -> Array:
        """``x`` [..., D], ``weight`` [D] -> [..., D] in the type of ``x``."""
        full = x.astype(jnp.float32)
        mean = jnp.mean(full * full, axis=-1, keepdims=True)
        normed = full * jax.lax.rsqrt(mean + self.eps)
        gain = jax.lax.broadcast_in_dim(self.gain(weight, x.dtype), x.shape, (x.ndim - 1,))
        return self.multiplied(normed, gain, x.dtype)

    def gain(self, weight: Array, dtype: Any) -> Array:
        """What is multiplied, in the type in which that is done."""
        gain = weight.astype(dtype if self.early else jnp.float32)
        return 1.0 + gain if self.one else gain

    def multiplied(self, normed: Array, gain: Array, dtype: Any) -> Array:
        """The product, in ``dtype``."""
        if self.early:
            return normed.astype(dtype) * gain
        return (normed * gain).astype(dtype)


def reference(x: Array, more: Array | None, weight: Array, norm: Norm) -> tuple[Array, Array]:
    """See `add_norm`."""
    x = x if more is None else x + more
    return x, norm(x, weight)


@dataclasses.dataclass(frozen=True)
class NormAtOnce:
    """A variant of `add_norm`: sum and norm in a kernel of our own (`ops.norm_kernel`)."""

    interpret: bool = False  # as an XLA program: where there is no GPU, and slowly

    def __call__(
        self, x: Array, more: Array | None, weight: Array, norm: Norm
    ) -> tuple[Array, Array]:
        if unfit(x, more) is not None:
            return reference(x, more, weight, norm)
        kernel = lambda x, more, weight: self._local(x, more, weight, norm)
        slowly = lambda x, more, weight: reference(x, more, weight, norm)
        found: tuple[Array, Array] = differentiated_as(kernel, slowly)(x, more, weight)
        return found

    def _local(
        self, x: Array, more: Array | None, weight: Array, norm: Norm
    ) -> tuple[Array, Array]:
        """Each device does so with its rows."""
        from specjax.core.ops.norm_kernel import add_norm_once  # only here: it brings Pallas

        run: Callable[..., Any] = lambda x, more, weight: add_norm_once(
            x, more, weight, norm, self.interpret
        )
        if not jax.sharding.get_abstract_mesh().empty:
            rows = fitting(x.shape, ("batch", *[None] * (x.ndim - 1)))
            specs = (rows, None if more is None else rows, PartitionSpec(None))
            run = jax.shard_map(run, in_specs=specs, out_specs=(rows, rows), check_vma=False)
        found: tuple[Array, Array] = run(x, more, weight)
        return found


def unfit(x: Array, more: Array | None) -> str | None:
    """Why the kernel does not take these; None: it does."""
    if x.dtype not in (jnp.float32, jnp.bfloat16) or (more is not None and more.dtype != x.dtype):
        return "states are not of one type, float32 or bfloat16"
    if x.shape[-1] > _WIDEST:
        return f"a state is wider than {_WIDEST}"
    return None


# (Not among `ops.OPS`, whose variants run on CPU as they are.)
ADD_NORM = Timed(reference, {"gpu": NormAtOnce(), "gpu:xla": reference}, name="sum and norm")


def add_norm(
    x: Array, more: Array | None, weight: Array, norm: Norm, *, platform: Platform | None = None
) -> tuple[Array, Array]:
    """``x`` [..., D] and ``more``, what is added to it -> the sum, and that normed.

    ``more`` None: nothing is added. Both results are in the type of ``x``.
    """
    found: tuple[Array, Array] = ADD_NORM(platform, x, more, weight, norm)
    return found


def adds_at_once(platform: Platform | None) -> bool:
    """Whether a sum is better formed by the norm behind it than by itself."""
    return ADD_NORM.is_other(platform)
