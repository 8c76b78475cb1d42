"""Root mean square normalisation, of the three kinds that families have.

All are ``gain * n(x)`` with ``n(x) = x / sqrt(mean(x^2) + eps)`` in float32. They differ in what
the gain is, and in where the product is rounded to the type of activations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from specjax.core.ops import Norm
from specjax.core.types import Array
from specjax.models.layers.residual import Residual, takes_residual


class RMSNorm(nnx.Module):
    """``w * round(n(x))`` (Llama's kind). ``precise``: w is float32 whatever the others are."""

    kind: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        features: int,
        *,
        eps: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        precise: bool = False,
    ):
        del rngs
        first = self.first((features,), jnp.dtype(jnp.float32) if precise else dtype)
        marks = {"precise": True} if precise else {}
        self.weight = nnx.Param(first, axes=(None,), **marks)
        self.eps = eps

    @staticmethod
    def first(shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        """The weights of a norm that only normalises."""
        return jnp.ones(shape, dtype)

    @property
    def norm(self) -> Norm:
        """What it does, without its weights."""
        return Norm(self.eps, **self.kind)

    @takes_residual()
    def __call__(self, x: Any) -> Any:
        """[..., D] -> [..., D] in the type of ``x``; of a `Residual` what that makes of it."""
        if isinstance(x, Residual):
            return x.normed(self.weight[...], self.norm)
        return self.norm(x, self.weight[...])


class LateRoundedNorm(RMSNorm):
    """``round(w * n(x))`` (gpt-oss)."""

    kind: ClassVar = {"early": False}


class ZeroCentredNorm(RMSNorm):
    """``round((1 + w) * n(x))`` (Gemma, Qwen3.5): w is what the gain is above 1."""

    kind: ClassVar = {"early": False, "one": True}

    @staticmethod
    def first(shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        return jnp.zeros(shape, dtype)


def of_heads(*layers: RMSNorm) -> tuple[Callable[[Array, Any], Array], tuple[Any, Any]]:
    """What norms of queries and of keys do, and what each takes beside them: its weights.

    If they are of no kind that is here, they take themselves.
    """
    first, second = layers
    known = all(type(layer).__call__ is RMSNorm.__call__ for layer in layers)
    if known and first.norm == second.norm:
        return first.norm, (first.weight[...], second.weight[...])
    return (lambda x, layer: layer(x)), (first, second)
