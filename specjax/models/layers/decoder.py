"""What families share: embedding, a stack of layers, final norm, head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from specjax.core.cache import Block, Cache, Entry, Part, empty
from specjax.core.cache.block import num_tokens
from specjax.core.ops import activation_dtype, likeliest, linear, lookup
from specjax.core.types import Array, pytree
from specjax.core.view import View
from specjax.models.config import UNNORMED, DecoderConfig
from specjax.models.layers.linear import Linear
from specjax.models.layers.norm import RMSNorm
from specjax.models.layers.placed import Placed
from specjax.models.layers.reading import Reading
from specjax.models.layers.residual import given_to, pin, states_of
from specjax.models.places import Place


class Layer(Protocol):
    """One layer of a family."""

    def init_entry(self, rows: int, slots: int, dtype: jnp.dtype) -> Entry:
        """Its empty memory, for texts of ``slots`` tokens."""
        ...

    def __call__(
        self, x: Array, entry: Any, before: Part | None, reading: Reading
    ) -> tuple[Array, Part]:
        """[B, T, D] -> [B, T, D], and what ``entry`` must commit of the T tokens.

        ``before`` is that of the block's P tokens that were fed earlier.
        """
        ...


@pytree
class Pass:
    """What one pass over T tokens gives. Logits come from ``head``, only where asked."""

    hidden: Array  # [B, T, D], final and normed
    features: Array | None  # [B, T, len(taps) * D], the tapped states side by side
    block: Block  # what the cache must commit of the T tokens


class Embed(Placed):
    """The token embedding [V, D], also the head where the two are tied."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.hidden_size)
        init = 0.02 * jax.random.normal(rngs.params(), shape)
        self.weight = nnx.Param(init.astype(dtype), axes=("vocab", None))

    def __call__(self, tokens: Array) -> Array:
        return lookup(self.weight[...], tokens, platform=self.platform)


class Decoder(Placed):
    """``(tokens, cache) -> Pass``, used purely: it changes nothing.

    Attribute names follow the tensor names of the checkpoints: ``layers.3.mlp.up_proj.weight``.
    A family subclasses this and says how layer ``index`` is made (`make_layer`) and how a config is
    read (``read_config(raw)``); and, where it has such, ``write_config(config)`` with the name
    ``architecture`` of Hugging Face's class, where its parameters lie in a checkpoint, and what
    share of a weight a token uses.
    """

    # What a config.json of the family says beside the sizes that all have, of a small model.
    small: ClassVar[Mapping[str, Any]] = {}
    norm_kind: ClassVar[type[RMSNorm]] = RMSNorm  # of the final norm

    @staticmethod
    def skipped(config: Any) -> tuple[str, ...]:
        """Of a checkpoint's tensors those that are no part of the text model: regular expressions.

        Any other that no parameter is read from is refused.
        """
        del config
        return ()

    @classmethod
    def place_of(cls, config: Any, path: str, root: str = "model") -> str | Place:
        """Where the parameter ``path``, "layers.3.norm.weight", lies in a checkpoint."""
        del config
        return path if path.startswith("lm_head.") else f"{root}.{path}"

    # Heads for further tokens, MTP (`drafters.mtp`): a layer of the family each, behind the others.
    nextn_key: ClassVar[str] = "mtp_num_hidden_layers"  # how configs say how many there are
    nextn_shared: ClassVar[bool] = True  # one projection and norms for all of them, in the first

    @classmethod
    def make_nextn_layer(
        cls, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> nnx.Module:
        """The layer of a head: by default one like the last."""
        return cls.make_layer(config, config.num_layers - 1, dtype=dtype, rngs=rngs)

    @classmethod
    def place_of_nextn(cls, config: Any, path: str) -> str | Place:
        """Where a parameter lies: ``heads.0.`` and then enorm, hnorm, eh_proj, norm or layer."""
        names = {
            "enorm": "pre_fc_norm_embedding",
            "hnorm": "pre_fc_norm_hidden",
            "eh_proj": "fc",
            "norm": "norm",
        }
        _, head, first, rest = path.split(".", 3)
        if first == "layer":
            return cls.place_of(config, f"layers.{head}.{rest}", "mtp")
        return f"mtp.{names[first]}.{rest}"

    @staticmethod
    def nextn_tensors(config: Any, heads: int) -> tuple[str, str]:
        """Regular expressions: their tensors, and those among them that the target has as well."""
        del config, heads
        return r"mtp\..*", r"mtp\.(embed_tokens|lm_head)\..*"

    @staticmethod
    def used_share(config: Any, weight: str) -> float:
        """What share of a weight, by its path, one token uses: of a dense one all."""
        del config, weight
        return 1.0

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        self.embed_tokens = Embed(config, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            [self.make_layer(config, i, dtype=dtype, rngs=rngs) for i in range(config.num_layers)]
        )
        self.norm = self.norm_kind(
            config.hidden_size, eps=config.rms_norm_eps, dtype=dtype, rngs=rngs
        )
        if not config.tie_word_embeddings:
            self.lm_head = Linear(
                config.hidden_size,
                config.vocab_size,
                axes=("vocab", None),
                dtype=dtype,
                rngs=rngs,
            )

    @staticmethod
    def make_layer(
        config: DecoderConfig, index: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> nnx.Module:
        raise TypeError("A model family says how its layers are made.")

    def __call__(
        self,
        tokens: Array,
        cache: Cache | None = None,
        *,
        view: View | None = None,
        before: Block | None = None,
        taps: tuple[int, ...] = (),
    ) -> Pass:
        """Runs the stack on T tokens that follow the cache, and the block ``before`` them.

        Args:
          tokens: [B, T] int32.
          cache: what all of them see; None: nothing, the block is the whole sequence.
          view: where the tokens of the block stand and what each of the T sees of it; None: one
            after the other, each seeing all before it.
          before: P tokens of the block that were fed earlier and are not in the cache yet.
          taps: indices of hidden states to hand out, in the order of Transformers'
            ``hidden_states``: 0 is the embedding, i the output of layer i - 1, and the last one
            (the number of layers) is after the final norm. `UNNORMED` is that before the norm.
        """
        if cache is None:
            cache = self.init_cache(tokens.shape[0], 0).placed(self.platform, self.replicated)
        if view is None:
            view = View.chain(tokens.shape[1], 0 if before is None else num_tokens(before))
        reading = Reading(cache.length, view)

        pinned = lambda x: self.constrain(x, "batch", None, None)
        x = pinned(self.embed(tokens))
        states = [x]
        block: list[Part] = []
        for i, layer in enumerate(self.layers):
            fed = None if before is None else before[i]
            x = given_to(layer, x, self.platform)
            x, part = layer(x, cache.layers[i], fed, reading)
            x = pin(pinned, x)
            states, block = [*states, x], [*block, part]
        x = self.norm(given_to(self.norm, x, self.platform))
        raw, states[-1] = states[-1], x
        tapped = [states_of(raw if t == UNNORMED else states[t]) for t in taps]
        features = jnp.concatenate(tapped, axis=-1) if taps else None
        return Pass(x, features, tuple(block))

    def embed(self, tokens: Array) -> Array:
        """[B, T] -> what the first layer reads, [B, T, D]."""
        return self.embed_tokens(tokens)

    def head(self, x: Array) -> Array:
        """[..., D] -> logits [..., V] float32."""
        logits = linear(x, self._head, platform=self.platform)
        return self.constrain(logits, "batch", *[None] * (x.ndim - 2), "vocab")

    def likeliest(self, x: Array) -> Array | None:
        """The largest of `head`, [...] int32, where it is found without it; None: see `ops`."""
        if type(self).head is not Decoder.head:
            return None  # a head of one's own may do more than to multiply
        return likeliest(x, self._head, platform=self.platform)

    @property
    def _head(self) -> Any:
        tied = self.config.tie_word_embeddings
        return (self.embed_tokens.weight if tied else self.lm_head.weight)[...]

    def init_cache(self, rows: int, slots: int) -> Cache:
        """An empty cache for texts of ``slots`` tokens, in the type of the activations."""
        dtype = activation_dtype(self.norm.weight[...].dtype, self.platform)
        layers: list[Any] = list(self.layers)
        return empty(tuple(layer.init_entry(rows, slots, dtype) for layer in layers), rows)
