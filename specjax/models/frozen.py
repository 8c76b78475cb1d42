"""A module split into what is traced and what is compiled in."""

from __future__ import annotations

from typing import Any

from flax import nnx

from specjax.core.cache import Block, Cache
from specjax.core.types import Array, pytree, static
from specjax.models.config import DecoderConfig


@pytree
class Frozen:
    """Calls like the module it was made of, and costs a tenth as much to hand to `jax.jit`."""

    params: Any  # nnx.State
    graphdef: Any = static()
    config: DecoderConfig = static()

    @classmethod
    def of(cls, module: nnx.Module) -> Frozen:
        graphdef, params = nnx.split(module)
        return cls(params=params, graphdef=graphdef, config=module.config)

    @property
    def module(self) -> Any:
        return nnx.merge(self.graphdef, self.params)

    def __call__(
        self, tokens: Array, cache: Cache | None, *, taps: tuple[int, ...] = ()
    ) -> tuple[Array, Array | None, Block]:
        return self.module(tokens, cache, taps=taps)

    def hidden(
        self, tokens: Array, cache: Cache | None, **kwargs: Any
    ) -> tuple[Array, Array | None, Block]:
        """See `models.layers.decoder.Decoder.hidden`."""
        return self.module.hidden(tokens, cache, **kwargs)

    def head(self, x: Array) -> Array:
        return self.module.head(x)

    def init_cache(self, rows: int, slots: int) -> Cache:
        return self.module.init_cache(rows, slots)
