"""A module split into what is traced and what is compiled in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from specjax.core.cache import Cache, Full, rounded
from specjax.core.platform import Platform
from specjax.core.quantised import Quantisation
from specjax.core.types import Array, pytree, static
from specjax.models.joint import dotted, is_copy, joint_of
from specjax.models.layers.decoder import Pass
from specjax.models.layers.joined import renew_copies
from specjax.models.layers.linear import Adapted
from specjax.models.layers.placed import place
from specjax.models.vocabulary import Vocabulary


@pytree
class Frozen:
    """Calls like the module it was made of, and costs a tenth as much to hand to `jax.jit`."""

    params: Any  # nnx.State
    graphdef: Any = static()
    config: Any = static()
    # On a mesh: each device holds and computes all of the model, for its share of the rows.
    replicated: bool = static(default=False)
    platform: Platform | None = static(default=None)  # None: that of JAX's default devices
    # How what it remembers of a text is kept, where layers remember every token; None: whole.
    memory: Quantisation | None = static(default=None)

    @classmethod
    def of(cls, module: Any) -> Frozen:
        graphdef, params = nnx.split(module)
        return cls(params=params, graphdef=graphdef, config=module.config)

    def __repr__(self) -> str:
        """Kind, sizes, dtype and devices, on one line."""
        held = [p.get_value() for _, p in nnx.to_flat_state(self.params) if not is_copy(p)]
        size = sum(math.prod(x.shape) for x in held if hasattr(x, "shape"))
        leaves = [x for x in jax.tree.leaves(self.params) if hasattr(x, "shape")]
        sizes = getattr(self.config, "backbone", self.config)
        kind = type(self.config).__name__.removesuffix("Config")
        kind = getattr(self.config, "model_type", kind.lower())
        dtypes = sorted({str(x.dtype) for x in leaves})
        parts = [
            *_sizes(sizes),
            f"{_rounded(size)} parameters",
            *dtypes,
            *_devices(leaves),
            *(["replicated"] if self.replicated else []),
        ]
        return f"{kind}({', '.join(parts)})"

    @property
    def module(self) -> Any:
        module = nnx.merge(self.graphdef, self.params)
        if self.platform is not None or self.replicated:
            place(module, self.platform, self.replicated)
        return module

    def with_module(self, module: Any) -> Frozen:
        """What ``module`` is made of, in this one's place."""
        place(module, None, False)  # said once, here
        renew_copies(module)  # what they are of may be another now
        made = Frozen.of(module)
        kept: dict[str, Any] = {"platform": self.platform, "memory": self.memory}
        return dataclasses.replace(made, replicated=self.replicated, **kept)

    def on(self, platform: Platform | None) -> Frozen:
        """The same, traced for another platform; None: that of JAX's default devices."""
        return dataclasses.replace(self, platform=platform)

    def __call__(self, tokens: Array, cache: Cache | None = None, **kwargs: Any) -> Pass:
        """See `models.layers.decoder.Decoder`."""
        if cache is None and self.memory is not None:
            cache = self.init_cache(tokens.shape[0], 0)  # which rounds what a block sees, too
        out: Pass = self.module(tokens, cache, **kwargs)
        return out

    def head(self, x: Array) -> Array:
        found: Array = self.module.head(x)
        return found

    def likeliest(self, x: Array) -> Array | None:
        """See `models.layers.decoder.Decoder`; None also where a family does not say."""
        module = self.module
        found: Array | None = module.likeliest(x) if hasattr(module, "likeliest") else None
        return found

    def remembering(self, kind: Quantisation | None, name: str) -> Frozen:
        """The same weights, keys and values remembered in 8 bits; None: whole.

        Raises:
          ValueError: naming the model ``name``, if no layer remembers those of every token.
        """
        whole = dataclasses.replace(self, memory=None)
        cache = jax.eval_shape(lambda net: net.init_cache(1, 8), whole)
        if kind is not None and not any(type(entry) is Full for entry in cache.layers):
            kinds = ", ".join(dict.fromkeys(type(entry).__name__ for entry in cache.layers))
            raise ValueError(
                f"kv_cache={kind}: no layer of {name} keeps the keys and values of every "
                f"token ({kinds} alone); leave it out."
            )
        return dataclasses.replace(self, memory=kind)

    def first(self, depth: int) -> Frozen:
        """The first ``depth`` layers under the same norm and head: the same arrays.

        Its memory is `Cache.first` of the whole one's.
        """
        module = self.module  # a new one, of the same parameters
        module.layers = nnx.List(list(module.layers)[:depth])
        module.config = dataclasses.replace(self.config, num_layers=depth)
        return self.with_module(module)

    def adapted(self, adapters: Mapping[str, tuple[Array, Array]], tokens: Array) -> Frozen:
        """The same weights, with low-rank side paths that some tokens of a pass take.

        Args:
          adapters: (down [rank, I], up [O, rank]) of weights [O, I] of the layers, by their paths,
            such as ``layers.0.mlp.up_proj.weight``.
          tokens: [T] bool, of every pass of T tokens: those that take the side paths.

        Raises:
          ValueError: if there is no such weight.
        """
        flat = dict(nnx.to_flat_state(self.params))
        # By name, where a weight is, in a copy as well: path, which part of it, shape.
        known: dict[str, list[tuple[Any, int | None, tuple[int, ...]]]] = {}
        for path, p in flat.items():
            joint = joint_of(p)
            if not is_copy(p):
                known.setdefault(dotted(path), []).append((path, None, p.shape))
            if joint is not None:
                for i, (at, rows) in enumerate(zip(joint.paths(path), joint.sizes)):
                    known.setdefault(dotted(at), []).append((path, i, (rows, *p.shape[1:])))
        for name, (down, up) in adapters.items():
            shape = (up.shape[0], down.shape[1])
            places = known.get(name, [])
            if not name.startswith("layers.") or {there for *_, there in places} != {shape}:
                raise ValueError(f"{name}: no layer has a weight {list(shape)} of that name.")
            for path, part, _ in places:
                side = Adapted(flat[path].get_value(), down, up, tokens, part)
                flat[path] = flat[path].replace(side)
        return dataclasses.replace(self, params=nnx.from_flat_state(list(flat.items())))

    @property
    def vocabulary(self) -> Vocabulary:
        """Embedding and head, for drafters that borrow them."""
        embedding = self.params["embed_tokens"]["weight"].get_value()
        if self.config.tie_word_embeddings:
            return Vocabulary(embedding, embedding, self.platform)
        output = self.params["lm_head"]["weight"].get_value()
        return Vocabulary(embedding, output, self.platform)

    def init_cache(self, rows: int, slots: int) -> Cache:
        cache: Cache = self.module.init_cache(rows, slots)
        cache = cache.placed(self.platform, self.replicated)
        return cache if self.memory is None else rounded(cache, self.memory)


def _sizes(config: Any) -> list[str]:
    """Layers, width and vocabulary, of what a config says of them."""
    layers, width, vocab = (
        getattr(config, name, None) for name in ("num_layers", "hidden_size", "vocab_size")
    )
    wide = f"width {width}" if layers is None else f"{layers} layers of {width}"
    return [*([] if width is None else [wide]), *([] if vocab is None else [f"{vocab} tokens"])]


def _rounded(number: int) -> str:
    """12.3M"""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _devices(leaves: list[Any]) -> list[str]:
    """Where they are, such as "cpu:0" or "8 tpu devices"; nothing while they are traced."""
    placed = (x for x in leaves if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer))
    found: set[Any] = {device for x in placed for device in x.sharding.device_set}
    if len(found) == 1:
        (device,) = found
        return [f"{device.platform}:{device.id}"]
    return [f"{len(found)} {min(d.platform for d in found)} devices"] if found else []
