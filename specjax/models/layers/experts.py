"""A layer whose MLP is a mixture of experts: a router, the experts it chooses, one that all share.

s       = score(W_r x)                      one a expert
chosen  = the k largest of s (+ a correction, within the best groups)
y       = scale * sum over chosen of w_e expert_e(x)  (+ shared(x))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.core.ops import Stack, experts, gated_silu, linear
from specjax.core.ops.experts import Mix, shares
from specjax.core.types import Array
from specjax.models.config import DecoderConfig
from specjax.models.layers.attention import MLP
from specjax.models.layers.linear import Linear
from specjax.models.layers.placed import Placed
from specjax.models.places import FirstOf, Part, Place, Stacked, Whole


@dataclasses.dataclass(frozen=True)
class Mixture:
    """How many experts there are, and how they are chosen and weighted. Hashable.

    ``score``: "softmax" over all of them (Shazeer et al. 2017, arXiv:1701.06538), "chosen" a
    softmax over the chosen ones, or "sigmoid" of each (DeepSeek-AI 2024, arXiv:2412.19437).
    """

    num: int  # E
    chosen: int  # k
    width: int  # I
    score: Literal["softmax", "chosen", "sigmoid"] = "softmax"
    renormalised: bool = True  # the weights of the chosen ones sum to 1, before ``scale``
    scale: float = 1.0
    # A bias that is added for choosing, and not for weighing, by the name of its parameter.
    corrected: bool = False
    groups: int = 1  # of E / groups neighbours each,
    kept_groups: int = 1  # of which only the best are chosen from
    bias: bool = False  # of the router and of the experts

    def __post_init__(self) -> None:
        if self.chosen > self.num:
            raise ValueError(
                f"{self.chosen} experts a token are more than the {self.num} there are."
            )
        if self.num % self.groups or not 1 <= self.kept_groups <= self.groups:
            raise ValueError(
                f"{self.num} experts do not fall into {self.groups} groups of which "
                f"{self.kept_groups} are kept."
            )
        if self.num // self.groups * self.kept_groups < self.chosen:
            raise ValueError(
                f"{self.kept_groups} groups of {self.num // self.groups} hold fewer than "
                f"{self.chosen} experts a token."
            )

    @classmethod
    def read(cls, raw: Mapping[str, Any], number: str, **more: Any) -> Mixture:
        """Sizes as configs spell them; ``number`` is the key of how many experts there are.

        Raises:
          ValueError: naming a key that is missing, or what does not fit together.
        """
        keys = {"num": number, "chosen": "num_experts_per_tok", "width": "moe_intermediate_size"}
        sizes = {name: raw[key] for name, key in keys.items() if raw.get(key) is not None}
        for name, key in keys.items():
            if name not in {**sizes, **more}:
                raise ValueError(f"config.json: lacks {key}; add it.")
        try:
            return cls(**{**sizes, **more})
        except ValueError as error:
            raise ValueError(f"config.json: {error}") from None


@dataclasses.dataclass(frozen=True)
class MixtureConfig(DecoderConfig):
    """Of a family whose layers, but for some dense ones, have a mixture of experts."""

    mixture: Mixture = dataclasses.field(kw_only=True)
    dense_layers: tuple[int, ...] = ()
    shared_width: int | None = None  # of the expert that every token goes to; None: there is none
    limit: float = 7.0  # of an expert's inputs, where the family clamps them

    def is_mixture(self, layer: int) -> bool:
        """Whether the layer has experts."""
        return layer not in self.dense_layers

    @property
    def has_mixture(self) -> bool:
        """Whether some layer has experts."""
        return any(self.is_mixture(layer) for layer in range(self.num_layers))

    def for_model_axis(self, size: int) -> Self:
        widths = (self.mixture.width, self.shared_width or size)
        if self.has_mixture and any(width % size for width in widths):
            raise ValueError(
                f"The mesh's model axis has {size} devices, which does not divide the width of "
                f"this {self.model_type} model's experts, {self.mixture.width}; choose a divisor, "
                "or an axis experts."
            )
        return super().for_model_axis(size)


def used_share(config: Any, weight: str) -> float:
    """See `Decoder.used_share`: of the experts, those that a token goes to."""
    return config.mixture.chosen / config.mixture.num if ".experts." in weight else 1.0


class _Made(TypedDict):
    dtype: jnp.dtype
    rngs: nnx.Rngs


class Router(Placed):
    """Which experts a token goes to. Logits, scores and choice are float32.

    Of equal scores the lower number is chosen, on every mesh.
    """

    def __init__(self, width: int, mixture: Mixture, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        m = mixture
        init = jax.random.normal(rngs.params(), (m.num, width)) * width**-0.5
        self.weight = nnx.Param(init.astype(dtype), axes=(None, None))
        if m.bias:
            self.bias = nnx.Param(jnp.zeros((m.num,), dtype), axes=(None,))
        if m.corrected:
            zeros = jnp.zeros((m.num,), jnp.float32)
            self.e_score_correction_bias = nnx.Param(zeros, axes=(None,), precise=True)
        self.mixture = mixture

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """[B, T, D] -> numbers of experts [B, T, k] int32, and their weights, float32."""
        m = self.mixture
        full = x.astype(jnp.float32)
        bias = self.bias[...] if m.bias else None
        logits = linear(full, self.weight[...].astype(jnp.float32), bias, platform=self.platform)
        if m.score == "chosen":
            best, chosen = jax.lax.top_k(logits, m.chosen)
            return chosen, jax.nn.softmax(best, axis=-1)
        scores = jax.nn.softmax(logits, -1) if m.score == "softmax" else jax.nn.sigmoid(logits)
        ranked = scores
        if m.corrected:
            ranked = scores + _along(self.e_score_correction_bias[...], scores)
        chosen = jax.lax.top_k(self._in_kept_groups(ranked), m.chosen)[1]
        weights = jnp.take_along_axis(scores, chosen, axis=-1)
        if m.renormalised:
            weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
        return chosen, m.scale * weights

    def _in_kept_groups(self, ranked: Array) -> Array:
        """Scores [.., E] with -inf in groups whose two best sum to less than those of others."""
        m = self.mixture
        if m.groups == 1:
            return ranked
        grouped = ranked.reshape(*ranked.shape[:-1], m.groups, -1)
        best = jax.lax.top_k(grouped, min(2, grouped.shape[-1]))[0].sum(-1)
        kept = jax.lax.top_k(best, m.kept_groups)[1]  # [.., kept]
        groups = _along(jnp.arange(m.groups, dtype=kept.dtype), kept[..., None])
        within = (kept[..., None] == groups).any(-2)
        return jnp.where(within[..., None], grouped, -jnp.inf).reshape(ranked.shape)


def _along(x: Array, like: Array) -> Array:
    return x.reshape((1,) * (like.ndim - 1) + (-1,))


MATRICES = ("gate_proj", "up_proj", "down_proj")  # of `Experts`


class Experts(Placed):
    """Their weights, stacked: ``gate_proj``, ``up_proj`` [E, I, D] and ``down_proj`` [E, D, I]."""

    def __init__(
        self,
        width: int,
        mixture: Mixture,
        *,
        mix: Mix = gated_silu,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        m = mixture

        def made(*shape: int, axes: tuple[str | None, ...]) -> nnx.Param[Array]:
            init = jax.random.normal(rngs.params(), shape) * shape[-1] ** -0.5
            return nnx.Param(init.astype(dtype), axes=axes)

        self.gate_proj = made(m.num, m.width, width, axes=("experts", "mlp", None))
        self.up_proj = made(m.num, m.width, width, axes=("experts", "mlp", None))
        self.down_proj = made(m.num, width, m.width, axes=("experts", None, "mlp"))
        if m.bias:
            zeros = lambda size: jnp.zeros((m.num, size), dtype)
            self.gate_proj_bias = nnx.Param(zeros(m.width), axes=("experts", "mlp"))
            self.up_proj_bias = nnx.Param(zeros(m.width), axes=("experts", "mlp"))
            self.down_proj_bias = nnx.Param(zeros(width), axes=("experts", None))
        self.mixture, self.mix = mixture, mix

    def __call__(self, x: Array, chosen: Array, weights: Array) -> Array:
        """The weighted sum of the experts ``chosen`` [B, T, k] on ``x`` [B, T, D], float32."""
        held: list[Any] = [getattr(self, name).get_value() for name in MATRICES]
        stack = Stack(held[0], held[1], held[2], mix=self.mix)
        where: dict[str, Any] = {"platform": self.platform, "replicated": self.replicated}
        if not self.mixture.bias:
            return experts(x, chosen, weights, stack, **where)
        stack = dataclasses.replace(
            stack, gate_bias=self.gate_proj_bias[...], up_bias=self.up_proj_bias[...]
        )
        out = experts(x, chosen, weights, stack, **where)
        # Added once, whatever the sum over devices is made of.
        k, num = chosen.shape[-1], self.mixture.num
        share = shares(chosen.reshape(-1, k), weights.reshape(-1, k), num)
        bias = jnp.einsum("em,ed->md", share, self.down_proj_bias[...].astype(jnp.float32))
        return out + bias.reshape(out.shape)


class MixtureMLP(nnx.Module):
    """Router, experts and, where there is one, an expert that every token goes to.

    ``shared`` is the width of that one; ``shared_gate`` weighs it by a sigmoid of its own.
    """

    def __init__(
        self,
        config: DecoderConfig,
        mixture: Mixture,
        *,
        mix: Mix = gated_silu,
        shared: int | None = None,
        shared_gate: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        width, kwargs = config.hidden_size, _Made(dtype=dtype, rngs=rngs)
        self.router = Router(width, mixture, **kwargs)
        self.experts = Experts(width, mixture, mix=mix, **kwargs)
        if shared is not None:
            self.shared = MLP(config, width=shared, **kwargs)
        if shared_gate:
            self.shared_gate = Linear(width, 1, axes=(None, None), **kwargs)
        self.has_shared, self.has_shared_gate = shared is not None, shared_gate

    def __call__(self, x: Array) -> Array:
        """[B, T, D] -> [B, T, D]."""
        out = self.experts(x, *self.router(x))
        if self.has_shared:
            more = self.shared(x).astype(jnp.float32)
            if self.has_shared_gate:
                more = more * jax.nn.sigmoid(self.shared_gate(x).astype(jnp.float32))
            out = out + more
        return out.astype(x.dtype)


def place_of_experts(name: str, num: int, matrix: str, *, fused_first: bool = False) -> Place:
    """Where a stacked matrix of experts lies: a tensor an expert, or all in one, gate before up.

    Args:
      name: the layer's ``mlp.experts`` as checkpoints call it.
      num: E.
      matrix: ``gate_proj``, ``up_proj`` or ``down_proj``.
      fused_first: all in one is how they are written.
    """
    each = Stacked(tuple(Whole(f"{name}.{e}.{matrix}.weight") for e in range(num)))
    fused: Place = Whole(f"{name}.down_proj")
    if matrix != "down_proj":
        number = ("gate_proj", "up_proj").index(matrix)
        fused = Part(f"{name}.gate_up_proj", 1, number, 2)
    return FirstOf((fused, each) if fused_first else (each, fused))
