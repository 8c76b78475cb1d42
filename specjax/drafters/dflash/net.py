"""The network of DFlash (arXiv:2602.06036) and of its successors DFlash2 and DSpark.

A small pre-norm stack that fills a block of masked tokens in one pass. It sees the committed text
only through the target: the tapped hidden states of each committed token are fused into one vector
c, and every layer projects c to keys and values with the weights that it uses for the block itself.

    c      = RMSNorm(W_fc [h_1 ; ... ; h_K])             once a committed token, for all layers
    q      = rope(norm_q(W_q y)),  y = RMSNorm(x)         of the block alone
    K, V   = of [c ; y]:  rope(norm_k(W_k .)),  W_v .
    x      = x + W_o softmax(q K^T / sqrt(H) + mask) V
    x      = x + MLP(RMSNorm(x))

Training runs the same functions over many blocks at once; only the masks differ.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from specjax.core.cache import Block, Cache, Full, Part, Ring, empty
from specjax.core.ops import (
    Columns,
    Projected,
    Seen,
    activation_dtype,
    apart,
    attend_blocks,
    tokens_of,
)
from specjax.core.platform import Platform
from specjax.core.types import Array, pytree, static
from specjax.core.view import View
from specjax.drafters.dflash.heads import (
    CandidateSelector,
    ConfidenceHead,
    GroupedConv,
    MarkovHead,
)
from specjax.models.config import DecoderConfig
from specjax.models.layers.attention import MLP, Attention, Look, split_heads
from specjax.models.layers.decoder import Embed
from specjax.models.layers.joined import Joining
from specjax.models.layers.linear import Linear
from specjax.models.layers.norm import RMSNorm
from specjax.models.layers.placed import Placed
from specjax.models.layers.residual import (
    formed,
    given_to,
    pin,
    projected,
    takes_normed,
    takes_residual,
)
from specjax.models.layers.rope import Rotation, rotation


@dataclasses.dataclass(frozen=True)
class DFlashConfig:
    """One config for the family; the fields of a variant are at their defaults elsewhere."""

    backbone: DecoderConfig  # sizes, rope, eps, biases of the draft; the target's vocabulary
    taps: tuple[int, ...]  # indices into Transformers' hidden_states of the target
    target_hidden_size: int
    block_size: int  # slots of a block, anchor included
    mask_token_id: int
    windows: tuple[int | None, ...]  # per layer: query p sees key r iff p - r < window; None: all
    causal: tuple[bool, ...]  # per layer, inside the block
    window_from_anchor: bool = False  # speculators: the window begins W before the anchor
    shifted: bool = False  # slot j guesses the token after its own (DSpark, sample_from_anchor)
    embedding_scale: float = 1.0
    output_multiplier: float = 1.0
    logit_softcap: float | None = None
    draft_vocab_size: int | None = None  # rows of a head of its own; None: the target's head
    own_embedding: bool = False
    conv_kernel_size: int = 0  # DFlash2; 0: none
    conv_group_size: int = 16
    selector_rank: int = 0  # DFlash2; 0: none
    selector_top_k: int = 16
    markov_rank: int = 0  # DSpark; 0: none
    confidence_head: bool = False
    confidence_with_markov: bool = True
    unused_window: int | None = None  # of a config that has one, and layers of which none slides

    def __post_init__(self) -> None:
        layers = self.backbone.num_layers
        if len(self.windows) != layers or len(self.causal) != layers:
            raise ValueError(
                f"windows ({len(self.windows)}) and causal ({len(self.causal)}) need one entry for "
                f"each of the {layers} layers."
            )

    @property
    def max_guesses(self) -> int:
        """Guesses of a whole block."""
        return self.block_size if self.shifted else self.block_size - 1


@pytree
class Blocks:
    """Many blocks side by side over one text, for training: what each of their T slots sees."""

    anchors: Array  # [B, T] int32: where in the row the anchor of the slot's block is
    begins: Array  # [B, T] int32: where the anchor's text begins there
    offsets: Array  # [T] int32: the slot's place in its block
    size: int = static()  # slots of a block

    @classmethod
    def at(cls, anchors: Array, size: int, begins: Array | None = None) -> Blocks:
        """Blocks of ``size`` slots that begin at ``anchors`` [B, N], one behind the other.

        ``begins`` [B, N] is where in the row the text of each begins; None: a row is one text.
        """
        offsets = jnp.tile(jnp.arange(size), anchors.shape[1])
        begins = jnp.zeros_like(anchors) if begins is None else begins
        spread = lambda x: jnp.repeat(x, size, axis=1)
        return cls(spread(anchors), spread(begins), offsets, size)

    @property
    def positions(self) -> Array:
        """[B, T] int32, in the text."""
        return self.anchors - self.begins + self.offsets[None, :]

    def seen(self, config: DFlashConfig, window: int | None, causal: bool) -> Seen:
        """The text strictly before the anchor, and inside the window, and the own block."""
        begin = self.begins
        if window is not None and config.window_from_anchor:
            begin = jnp.maximum(self.anchors - window, begin)
        elif window is not None:
            begin = jnp.maximum(self.anchors + self.offsets[None, :] - window + 1, begin)
        within = inside(self.offsets[: self.size], causal, window)[0]
        return Seen(begin, self.anchors, within)

    def looking_at(
        self, context: Block, config: DFlashConfig, platform: Platform | None = None
    ) -> Look:
        """Slots see ``context``, keys and values of the whole text, and their own block."""
        kinds = {*zip(config.windows, config.causal)}
        seen = {kind: self.seen(config, *kind) for kind in kinds}

        def look(layer: int, q: Array, k: Array, v: Array) -> Array:
            kind = config.windows[layer], config.causal[layer]
            keys, values = context[layer]
            return attend_blocks(q, ((k, v),), (keys, values), seen[kind], platform=platform)

        return look


def inside(offsets: Array, causal: bool, window: int | None) -> Array:
    """[1, T, T] bool: what slots ``offsets`` [T] see of one block."""
    behind = offsets[:, None] - offsets[None, :]  # query minus key
    seen = jnp.ones_like(behind, bool)
    if causal:
        seen = seen & (behind >= 0)
    if window is not None:
        seen = seen & (jnp.abs(behind) < window)
    return seen[None]


def block_views(config: DFlashConfig, num_slots: int) -> tuple[View, ...]:
    """For each layer, one block of ``num_slots`` right behind the context."""
    offsets = jnp.arange(num_slots)
    views = {
        (window, causal): View(offsets[None], inside(offsets, causal, window))
        for window, causal in {*zip(config.windows, config.causal)}
    }
    return tuple(views[pair] for pair in zip(config.windows, config.causal))


class DFlashAttention(Attention):
    """Queries from the block; keys and values from the context and the block."""

    joints: ClassVar = Attention.joints

    def keys_values(self, k: Array, v: Array, rotate: Rotation) -> Part:
        """Projections [B, T, G * H] -> [B, G, T, H] twice."""
        c = self.config
        k, v = (split_heads(y, c.num_kv_heads) for y in (k, v))
        k = rotate(self.k_norm(k))
        if c.kv_repeat > 1:
            k, v = jnp.repeat(k, c.kv_repeat, axis=1), jnp.repeat(v, c.kv_repeat, axis=1)
        pinned = lambda y: self.constrain(y, "batch", "kv_heads", None, None)
        return pinned(k), pinned(v)

    def projected(self, part: Part, k: Columns, v: Columns, rotate: Rotation) -> Any:
        """``part``, as `keys_values` made it of columns k and v, beside those."""
        norm, turn = self.k_norm, (rotate.cos, rotate.sin)
        if type(norm) is not RMSNorm or rotate.cos.shape[-1] != k.width:
            return part
        k = dataclasses.replace(k, gain=norm.weight[...], eps=norm.eps, turn=turn)
        return Projected(part[0], k), Projected(part[1], v)

    @takes_normed
    def block(self, x: Array, rotate: Rotation, look: Callable[..., Array]) -> Array:
        """[B, T, D] -> [B, T, D]; ``look`` is a `Look` of this layer."""
        q, k, v, _ = self._project(x, rotate)
        out = look(q, k, v)
        rows, _, num_tokens, _ = out.shape
        return projected(x, self.o_proj, out.swapaxes(1, 2).reshape(rows, num_tokens, -1))


class DFlashLayer(nnx.Module):
    """Pre-norm attention and gated MLP, each between two convolutions in DFlash2."""

    def __init__(self, config: DFlashConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        c = config.backbone
        norm: dict[str, Any] = {"eps": c.rms_norm_eps, "dtype": dtype, "rngs": rngs}
        self.input_layernorm = RMSNorm(c.hidden_size, **norm)
        self.self_attn = DFlashAttention(c, head_norm=True, dtype=dtype, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, **norm)
        self.mlp = MLP(c, dtype=dtype, rngs=rngs)
        self.has_conv = config.conv_kernel_size > 0
        if self.has_conv:
            sizes = (c.hidden_size, config.conv_kernel_size, config.conv_group_size)
            self.attention_conv = GroupedConv(*sizes, dtype=dtype, rngs=rngs)
            self.mlp_conv = GroupedConv(*sizes, dtype=dtype, rngs=rngs)

    @takes_residual("input_layernorm", "post_attention_layernorm", into=("self_attn.block", "mlp"))
    def __call__(
        self, x: Array, rotate: Rotation, look: Callable[..., Array], offsets: Array
    ) -> Array:
        y = self.input_layernorm(x)
        if not self.has_conv:
            x = x + self.self_attn.block(y, rotate, look)
            return x + self.mlp(self.post_attention_layernorm(x))
        y = formed(y)
        before, after = self.attention_conv(y, offsets)
        x = x + after(self.self_attn.block(before(y), rotate, look))
        y = formed(self.post_attention_layernorm(x))
        before, after = self.mlp_conv(y, offsets)
        return x + after(self.mlp(before(y)))


class DFlashNet(Joining, Placed):
    """Attribute names are the tensor names of the published checkpoints."""

    def __init__(self, config: DFlashConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        c = config.backbone
        self.config = config
        norm: dict[str, Any] = {"eps": c.rms_norm_eps, "dtype": dtype, "rngs": rngs}
        fused = len(config.taps) * config.target_hidden_size
        self.fc = Linear(fused, c.hidden_size, axes=("fused", None), dtype=dtype, rngs=rngs)
        self.hidden_norm = RMSNorm(c.hidden_size, **norm)
        self.layers = nnx.List(
            [DFlashLayer(config, dtype=dtype, rngs=rngs) for _ in range(c.num_layers)]
        )
        self.norm = RMSNorm(c.hidden_size, **norm)
        if config.own_embedding:
            self.embed_tokens = Embed(c, dtype=dtype, rngs=rngs)
        if config.draft_vocab_size is not None:
            rows = config.draft_vocab_size
            self.lm_head = Linear(c.hidden_size, rows, axes=("vocab", None), dtype=dtype, rngs=rngs)
        if config.selector_rank:
            self.candidate_selector = CandidateSelector(
                c.vocab_size, c.hidden_size, config.selector_rank, dtype=dtype, rngs=rngs
            )
        if config.markov_rank:
            self.markov_head = MarkovHead(c.vocab_size, config.markov_rank, dtype=dtype, rngs=rngs)
        if config.confidence_head:
            wide = config.markov_rank if config.confidence_with_markov else 0
            self.confidence_head = ConfidenceHead(c.hidden_size + wide, dtype=dtype, rngs=rngs)

    @property
    def dtype(self) -> jnp.dtype:
        """The type of states and cache."""
        return activation_dtype(self.norm.weight[...].dtype, self.platform)

    def fuse(self, features: Array) -> Array:
        """Tapped states [B, T, K * D_target] -> c [B, T, D]."""
        c = self.hidden_norm(self.constrain(self.fc(features), "batch", None, None))
        return self.constrain(c.astype(self.dtype), "batch", None, None)

    @property
    def copies(self) -> Mapping[str, tuple[str, ...]]:
        """The context is one input of all layers, which multiply their blocks by the same."""
        parts = [f"layers.{i}.self_attn.{x}_proj" for i in range(len(self.layers)) for x in "kv"]
        return {"context_proj": tuple(parts)}

    def context(self, features: Array, positions: Array) -> Block:
        """Keys and values in every layer of the tokens at ``positions`` [B, T]."""
        return tuple(tuple(map(tokens_of, part)) for part in self.to_commit(features, positions))

    def to_commit(self, features: Array, positions: Array) -> tuple[Any, ...]:
        """`context` for a cache, which may norm and rotate it while it is written (`Projected`)."""
        c, width = self.fuse(features), self.config.backbone.head_dim
        rotate = rotation(self.config.backbone.rope, positions, width)
        found: list[Any] = []
        joined = self.joined("context_proj")
        if joined is None:
            for layer in self.layers:
                a = layer.self_attn
                found.append(a.keys_values(a.k_proj(c), a.v_proj(c), rotate))
                c = apart(c, platform=self.platform)
            return tuple(found)
        parts, whole, blocks = joined.multiplied(c)
        for i, layer in enumerate(self.layers):
            a, begins = layer.self_attn, joined.joint.begins
            k, v = 2 * i, 2 * i + 1
            part = a.keys_values(parts[k], parts[v], rotate)
            if whole is not None:
                of_k, of_v = (Columns(whole, None, None, begins[x], blocks, width) for x in (k, v))
                part = a.projected(part, of_k, of_v, rotate)
            found.append(part)
        return tuple(found)

    def block(self, x: Array, positions: Array, offsets: Array, look: Look) -> Array:
        """Runs blocks of embedded tokens over the context.

        Args:
          x: [B, T, D], anchors and masks, embedded and scaled.
          positions: [B, T] int32.
          offsets: [T] int32, each one's place in its block.
          look: what they see: `Blocks.looking_at`, or a cache with `block_views`.

        Returns:
          The final, normed states [B, T, D].
        """
        backbone = self.config.backbone
        rotate = rotation(backbone.rope, positions, backbone.head_dim)
        pinned = lambda x: self.constrain(x, "batch", None, None)
        for i, layer in enumerate(self.layers):
            x = given_to(layer, x, self.platform)
            x = pin(pinned, layer(x, rotate, functools.partial(look, i), offsets))
        normed: Array = self.norm(given_to(self.norm, x, self.platform))
        return normed

    def init_cache(self, rows: int, slots: int) -> Cache:
        """An empty context for texts of ``slots`` tokens, in the type of the activations."""
        config, c = self.config, self.config.backbone
        sizes = (rows, slots, c.num_kv_heads * c.kv_repeat, c.head_dim, self.dtype)
        start, axis = config.window_from_anchor, self.axis("kv_heads")
        return empty(
            tuple(
                Full.empty(*sizes, axis=axis)
                if window is None
                else Ring.empty(*sizes, window=window, from_start=start, axis=axis)
                for window in config.windows
            ),
            rows,
        )
