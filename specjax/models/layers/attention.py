"""Grouped-query attention over an entry of the cache and the block of tokens being fed.

The entry is read, never written, here. The keys and values of the block are returned, and
committed when the verdict is known (`core.cache`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.core.cache import Block, Cache, Full, Part, Ring
from specjax.core.cache.block import join
from specjax.core.ops import Form, Products, Rotation, heads
from specjax.core.ops import split_heads as split_heads
from specjax.core.types import Array
from specjax.core.view import View
from specjax.models.config import DecoderConfig
from specjax.models.layers.joined import Joining
from specjax.models.layers.linear import Linear
from specjax.models.layers.norm import RMSNorm, of_heads
from specjax.models.layers.placed import Placed
from specjax.models.layers.reading import Reading
from specjax.models.layers.residual import Normed, projected, takes_normed
from specjax.models.layers.rope import Rope

# (layer, queries [B, N, T, H], keys [B, G, T, H], values [B, G, T, H]) -> [B, N, T, H]: what the
# queries of a layer see, where training and decoding differ in nothing else.
Look = Callable[[int, Array, Array, Array], Array]


def looking_back(cache: Cache, views: View | Sequence[View], before: Block | None = None) -> Look:
    """Queries see ``cache`` and, of the block, what the view says: one for all layers, or one each.

    ``before`` holds the block's P tokens that were fed earlier.
    """

    def look(layer: int, q: Array, k: Array, v: Array) -> Array:
        view = views if isinstance(views, View) else views[layer]
        new = join(None if before is None else before[layer], (k, v))
        found: Array = cache.layers[layer].attend(q, new, cache.length, view)
        return found

    return look


class Attention(Joining, Placed):
    """Projections, rotation, attention, output projection.

    ``head_norm`` makes the norm that some families apply to each query and key head, of the kind
    ``norm``; ``in_features`` is the width of the input where it is not the model's. With a
    ``window`` a token sees itself and the ``window - 1`` tokens before it, and the cache keeps no
    more. ``rope`` is the config's by default, ``scale`` of the scores ``H ** -0.5``.

    ``gated``: a head's rows in `q_proj` are its query and a gate, ``sigmoid(gate)`` times what it
    attends to (Qiu et al. 2025, arXiv:2505.06708). ``sinks``: `ops.attend`.
    """

    joints: ClassVar = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}

    def __init__(
        self,
        config: DecoderConfig,
        *,
        head_norm: bool,
        window: int | None = None,
        in_features: int | None = None,
        rope: Rope | None = None,
        scale: float | None = None,
        gated: bool = False,
        sinks: bool = False,
        norm: type[RMSNorm] = RMSNorm,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        c = config
        width = c.hidden_size if in_features is None else in_features
        kwargs: dict[str, Any] = {"bias": c.attention_bias, "dtype": dtype, "rngs": rngs}
        q_width, kv_width = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        self.q_proj = Linear(width, q_width * (1 + gated), axes=("heads", None), **kwargs)
        # Key/value heads that are repeated to reach the model axis come from replicated weights.
        kv_axis = "kv_heads" if c.kv_repeat == 1 else None
        self.k_proj = Linear(width, kv_width, axes=(kv_axis, None), **kwargs)
        self.v_proj = Linear(width, kv_width, axes=(kv_axis, None), **kwargs)
        out_bias = getattr(c, "output_bias", None)
        kwargs["bias"] = c.attention_bias if out_bias is None else out_bias
        self.o_proj = Linear(q_width, c.hidden_size, axes=(None, "heads"), **kwargs)
        if head_norm:
            sizes: dict[str, Any] = {"eps": c.rms_norm_eps, "dtype": dtype, "rngs": rngs}
            self.q_norm = norm(c.head_dim, **sizes)
            self.k_norm = norm(c.head_dim, **sizes)
        if sinks:
            self.sinks = nnx.Param(jnp.zeros((c.num_heads,), dtype), axes=("heads",))
        self.head_norm, self.has_sinks, self.gated = head_norm, sinks, gated
        self.window, self.scale = window, scale
        self.rope = c.rope if rope is None else rope
        self.config = c

    def init_entry(self, rows: int, slots: int, dtype: jnp.dtype) -> Full | Ring:
        """An empty memory for texts of ``slots`` tokens."""
        c = self.config
        sizes = (rows, slots, c.num_kv_heads * c.kv_repeat, c.head_dim, dtype)
        axis = self.axis("kv_heads")
        if self.window is None:
            return Full.empty(*sizes, axis=axis)
        return Ring.empty(*sizes, window=self.window, axis=axis)

    def project(self, x: Array, reading: Reading) -> tuple[Array, Array, Array]:
        """[B, T, D] -> queries [B, N, T, H], keys and values [B, G, T, H], normed and rotated."""
        return self._project(x, reading.rotation(self.rope, self.config.head_dim))[:3]

    def _project(self, x: Array | Normed, rotation: Rotation) -> tuple[Array, Array, Array, Array]:
        """`project`, and what follows a head's query in its rows: its gate, or nothing."""
        c = self.config
        (q, k, v), whole, blocks = self.multiplied("qkv_proj", x)
        products = Products(q, k, v, whole, blocks)
        norm, weights = of_heads(self.q_norm, self.k_norm) if self.head_norm else (None, None)
        form = Form(
            c.num_heads,
            c.num_kv_heads,
            c.head_dim,
            norm=norm,
            axes=(self.axis("heads"), self.axis("kv_heads") if c.kv_repeat == 1 else None),
        )
        q, k, v = heads(products, rotation, weights, form, platform=self.platform)
        gate = split_heads(products.q, c.num_heads)[..., c.head_dim :]
        if c.kv_repeat > 1:
            k, v = jnp.repeat(k, c.kv_repeat, axis=1), jnp.repeat(v, c.kv_repeat, axis=1)
        q = self.constrain(q, "batch", "heads", None, None)
        k = self.constrain(k, "batch", "kv_heads", None, None)
        v = self.constrain(v, "batch", "kv_heads", None, None)
        return q, k, v, gate

    @takes_normed
    def __call__(
        self, x: Array, entry: Full | Ring, before: Part | None, reading: Reading
    ) -> tuple[Array, Part]:
        """[B, T, D] -> [B, T, D], and what ``entry`` must commit of it.

        ``before`` is that of the block's P tokens that were fed earlier.
        """
        q, k, v, gate = self._project(x, reading.rotation(self.rope, self.config.head_dim))
        out = entry.attend(
            q,
            join(before, (k, v)),
            reading.length,
            reading.view,
            scale=self.scale,
            sinks=self.sinks[...] if self.has_sinks else None,
        )
        if self.gated:
            out = out * jax.nn.sigmoid(gate.astype(jnp.float32)).astype(out.dtype)
        rows, _, num_tokens, _ = out.shape
        mixed = out.swapaxes(1, 2).reshape(rows, num_tokens, -1)
        return projected(x, self.o_proj, mixed), (k, v)


class MLP(Joining):
    """``down(act(gate x) * up x)``, with silu SwiGLU (Shazeer 2020, arXiv:2002.05202).

    ``width`` is that of the config by default, ``act`` is silu.
    """

    joints: ClassVar = {"gate_up_proj": ("gate_proj", "up_proj")}

    def __init__(
        self,
        config: DecoderConfig,
        *,
        width: int | None = None,
        act: Callable[[Array], Array] = jax.nn.silu,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        wide, width = width or config.intermediate_size, config.hidden_size
        kwargs: dict[str, Any] = {"bias": config.mlp_bias, "dtype": dtype, "rngs": rngs}
        self.gate_proj = Linear(width, wide, axes=("mlp", None), **kwargs)
        self.up_proj = Linear(width, wide, axes=("mlp", None), **kwargs)
        self.down_proj = Linear(wide, width, axes=(None, "mlp"), **kwargs)
        self.act = act

    @takes_normed
    def __call__(self, x: Array) -> Array:
        """[B, T, D] -> [B, T, D]."""
        return projected(x, self.down_proj, self.gated_product("gate_up_proj", x, self.act))
