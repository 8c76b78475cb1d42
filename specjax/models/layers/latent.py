"""Multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434) as DeepSeek-V3 has it.

    q       = W_qb RMSNorm(W_qa x)        a head: [qn | qr],  qr rotated
    [c | r] = W_kva x                     c normed, r rotated; all that is remembered of a token
    k_n     = [W_k,n c | r],  v_n = W_v,n c      of head n, the rows of W_kvb being [W_k,n ; W_v,n]
    y       = W_o [softmax(scale q_n . k_n) v_n]

Keys and values of all heads are written out where there are many queries. Where there are few, the
matrices move to their side and attention stays in the compressed space: q_n . W_k,n c is
(W_k,n^T q_n) . c, and values are made of the weighted sum of c. Both are the same sums in another
order.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from specjax.core.cache import Latent, Part
from specjax.core.cache.block import join
from specjax.core.ops import per_head
from specjax.core.types import Array
from specjax.models.layers.attention import split_heads
from specjax.models.layers.joined import Joining
from specjax.models.layers.linear import Linear
from specjax.models.layers.norm import RMSNorm
from specjax.models.layers.placed import Placed
from specjax.models.layers.reading import Reading
from specjax.models.layers.rope import Rope, YarnScaling, halved


@dataclasses.dataclass(frozen=True)
class LatentConfig:
    """Sizes and constants of one layer."""

    hidden_size: int
    num_heads: int
    query_rank: int | None  # None: queries come from one matrix, `q_proj`
    rank: int  # C, of the compressed vector
    plain_dim: int  # of a head's query and key, without position
    rotary_dim: int  # of the part that is rotated, one key for all heads
    value_dim: int
    rope: Rope
    bias: bool = False
    eps: float = 1e-6  # of the two norms inside, in DeepSeek's code whatever the others have

    @property
    def scale(self) -> float:
        """What scores are multiplied by; a context lengthened by YaRN sharpens them."""
        scale = (self.plain_dim + self.rotary_dim) ** -0.5
        yarn = self.rope.scaling
        if isinstance(yarn, YarnScaling) and yarn.mscale_all_dim:
            scale *= yarn.magnitude(yarn.mscale_all_dim) ** 2
        size: float = scale
        return size

    def writes_out(self, num_tokens: int) -> bool:
        """Whether it takes fewer multiplications a token seen to write its keys and values out."""
        written = self.plain_dim + self.value_dim
        return num_tokens * (2 * self.rank - written) > self.rank * written


class LatentAttention(Joining, Placed):
    """Attributes are named as the checkpoints' tensors: ``self_attn.kv_b_proj.weight``.

    ``in_features`` is the width of the input where it is not the model's. ``written`` says which
    form is used; None: the one with fewer multiplications.
    """

    joints: ClassVar = {"qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa")}

    def __init__(
        self,
        config: LatentConfig,
        *,
        in_features: int | None = None,
        written: bool | None = None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        c = config
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        narrow: dict[str, Any] = {"axes": (None, None), "bias": c.bias, **kwargs}
        wide = c.num_heads * (c.plain_dim + c.rotary_dim)
        width = c.hidden_size if in_features is None else in_features
        if c.query_rank is None:
            self.q_proj = Linear(width, wide, axes=("heads", None), **kwargs)
        else:
            self.q_a_proj = Linear(width, c.query_rank, **narrow)
            self.q_a_layernorm = RMSNorm(c.query_rank, eps=c.eps, **kwargs)
            self.q_b_proj = Linear(c.query_rank, wide, axes=("heads", None), **kwargs)
        self.kv_a_proj_with_mqa = Linear(width, c.rank + c.rotary_dim, **narrow)
        self.kv_a_layernorm = RMSNorm(c.rank, eps=c.eps, **kwargs)
        rows = c.num_heads * (c.plain_dim + c.value_dim)
        self.kv_b_proj = Linear(c.rank, rows, axes=("heads", None), **kwargs)
        inner = c.num_heads * c.value_dim
        self.o_proj = Linear(inner, c.hidden_size, axes=(None, "heads"), bias=c.bias, **kwargs)
        self.config = c
        self.written = written

    def init_entry(self, rows: int, slots: int, dtype: jnp.dtype) -> Latent:
        """An empty memory for texts of ``slots`` tokens."""
        return Latent.empty(rows, slots, self.config.rotary_dim, self.config.rank, dtype)

    def __call__(
        self, x: Array, entry: Latent, before: Part | None, reading: Reading
    ) -> tuple[Array, Part]:
        """[B, T, D] -> [B, T, D], and what ``entry`` must commit of it.

        ``before`` is that of the block's P tokens that were fed earlier.
        """
        c, num_tokens = self.config, x.shape[1]
        rotate = reading.rotation(c.rope, c.rotary_dim)
        queries, low = self._project(x)
        plain, rotary = jnp.split(split_heads(queries, c.num_heads), [c.plain_dim], -1)
        rotary = rotate(halved(rotary))
        compressed, key = jnp.split(low[:, None], [c.rank], -1)
        part = (rotate(halved(key)), self.kv_a_layernorm(compressed))
        new = join(before, part)

        where = (reading.length, reading.view)
        if c.writes_out(num_tokens) if self.written is None else self.written:
            q = jnp.concatenate([plain, rotary], axis=-1)
            out = entry.attend_written(q, new, *where, self._write, scale=c.scale)
        else:
            q_both = (rotary, self._absorb(plain))
            out = self._values(entry.attend(q_both, new, *where, scale=c.scale))
        out = self.constrain(out, "batch", "heads", None, None)
        return self.o_proj(out.swapaxes(1, 2).reshape(x.shape[0], num_tokens, -1)), part

    def _project(self, x: Array) -> tuple[Array, Array]:
        """Queries [B, T, N * (H + R)], and what keys and values are made of [B, T, C + R]."""
        if self.config.query_rank is None:
            return self.q_proj(x), self.kv_a_proj_with_mqa(x)
        queries, low = self.products("qkv_a_proj", x)
        return self.q_b_proj(self.q_a_layernorm(queries)), low

    def _write(self, rotary: Array, compressed: Array) -> tuple[Array, Array]:
        """Keys [B, N, S, H] and values [B, N, S, Hv] of all heads."""
        c = self.config
        both = split_heads(self.kv_b_proj(compressed[:, 0]), c.num_heads)
        plain, values = jnp.split(both, [c.plain_dim], axis=-1)
        shared = jnp.broadcast_to(rotary, (*plain.shape[:3], c.rotary_dim))
        return jnp.concatenate([plain, shared], axis=-1), values

    # The two halves of a head's rows are not cut out of the matrix: that would be a copy of it in
    # every cycle. Zeros in the query and columns that nobody looks at cost less.

    def _head_rows(self) -> Array:
        """[N, H + Hv, C]."""
        return self.kv_b_proj.weight[...].reshape(self.config.num_heads, -1, self.config.rank)

    def _absorb(self, q: Array) -> Array:
        """[B, N, T, H] -> [B, N, T, C]."""
        w = self._head_rows()
        padded = jnp.pad(q, ((0, 0), (0, 0), (0, 0), (0, self.config.value_dim)))
        return per_head(padded, w, platform=self.platform).astype(q.dtype)

    def _values(self, x: Array) -> Array:
        """[B, N, T, C] -> [B, N, T, Hv]."""
        w = self._head_rows()
        out = per_head(x, w, turned=True, platform=self.platform)
        return out[..., self.config.plain_dim :].astype(x.dtype)
