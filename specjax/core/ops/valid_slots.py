"""Attention in a kernel of our own where that takes the arguments, and as XLA does it elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from specjax.core.ops.laid import Laid
from specjax.core.ops.one_softmax import Cached, Known, Parts, Queries
from specjax.core.quantised import Quantised
from specjax.core.types import Array

_FLOATS = (jnp.float32, jnp.bfloat16)
_KEPT = (*_FLOATS, jnp.int8, jnp.float8_e4m3fn)
_WIDEST = 512  # of a value, and of a part of a key: a tile of it must lie in shared memory


@dataclasses.dataclass(frozen=True)
class ValidSlots:
    """A variant of `attend` that reads of each row what the row has (`ops.flash`)."""

    whole: Callable[..., Array]  # what the kernel does not take
    interpret: bool = False  # the kernel as an XLA program: where there is no GPU, and slowly

    def __call__(
        self,
        q: Queries,
        k: Parts,
        v: Known,
        visible: Array,
        cached: Cached | None,
        scale: float | None,
        sinks: Array | None = None,
    ) -> Array:
        laid = None if cached is None else Laid.of(q, v, visible, cached, sinks)
        if cached is None or laid is None or unfit(q, k, v, cached) is not None:
            return self.whole(q, k, v, visible, cached, scale, sinks)
        from specjax.core.ops.flash import flash  # only here: it brings Pallas

        attend = lambda *given: flash(*given, interpret=self.interpret)
        return laid.run(attend, q, k, v, visible, cached, scale, sinks)


def unfit(q: Queries, k: Parts, v: Known, cached: Cached | None) -> str | None:
    """Why the kernel does not take these arguments; None: it does."""
    if cached is None:
        return "there is no cache: a whole sequence, which may be differentiated"
    if cached.reach is None:
        return "it is not known how far rows reach: it may be differentiated"
    if cached.write is not None:
        return "keys and values are made of what is kept first"
    if not cached.seen.shape[-1]:
        return "the cache has no slots"
    kept = (k, v, cached.keys, cached.values)
    of_kind = lambda x: isinstance(x, Quantised)
    if not all(x.by_row for x in jax.tree.leaves(kept, is_leaf=of_kind) if of_kind(x)):
        return "a key or value has several factors"
    numbers = [x for x in jax.tree.leaves(kept) if x.shape[-1] > 1]
    dtypes = {x.dtype for x in jax.tree.leaves(q)}
    floats = {x.dtype for x in numbers} - {jnp.dtype(x) for x in _KEPT[2:]}
    if len(dtypes) > 1 or not dtypes <= {jnp.dtype(x) for x in _FLOATS} or not floats <= dtypes:
        return "queries, keys and values are not of one type, float32 or bfloat16"
    if max(x.shape[-1] for x in numbers) > _WIDEST:
        return f"a key or value is wider than {_WIDEST}"
    return None
