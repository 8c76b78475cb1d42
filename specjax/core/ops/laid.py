"""How attention's arguments lie on a mesh, for what every device does with the part that it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from specjax.core.ops.one_softmax import Cached, Known, Parts, Queries
from specjax.core.sharding import fitting, pieces
from specjax.core.types import Array


@dataclasses.dataclass(frozen=True)
class Laid:
    """On a mesh every device goes over the rows and heads that it has."""

    specs: Any  # of queries, keys, values, visible, what is cached, and sinks; None: no mesh
    groups: int  # key/value heads on a device

    @classmethod
    def of(
        cls, q: Queries, v: Known, visible: Array, cached: Cached, sinks: Array | None
    ) -> Laid | None:
        """None: they do not lie so, or it is not known how far rows reach."""
        if cached.reach is None:
            return None
        groups, mesh = v.shape[1], jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return cls(None, groups)
        query = q[0] if isinstance(q, tuple) else q
        of_q, of_kv = cached.axes
        queries = fitting(query.shape, ("batch", of_q, None, None))
        keys = fitting(v.shape, ("batch", of_kv, None, None))
        if cached.write is not None or (groups > 1 and queries[1] != keys[1]):
            return None
        masks = [fitting(x.shape, ("batch", None, None)) for x in (visible, cached.seen)]
        known = (keys, keys, masks[1], fitting(cached.reach.shape, ("batch",)))
        of_sinks = None if sinks is None else PartitionSpec(queries[1])
        split = pieces(of_kv) if keys[1] is not None and of_kv is not None else 1
        return cls((queries, keys, keys, masks[0], known, of_sinks), groups // split)

    def run(
        self,
        attend: Callable[..., Array],
        q: Queries,
        k: Parts,
        v: Known,
        visible: Array,
        cached: Cached,
        scale: float | None,
        sinks: Array | None,
    ) -> Array:
        """``attend``, which takes these arguments, of each device's part; nothing is exchanged."""

        def local(q: Queries, k: Parts, v: Known, visible: Array, known: Any, sinks: Any) -> Array:
            here = cached._replace(keys=known[0], values=known[1], seen=known[2], reach=known[3])
            return attend(q, k, v, visible, here, scale, sinks)

        given = (q, k, v, visible, cached[:4], sinks)
        if self.specs is None:
            return local(*given)
        run = jax.shard_map(local, in_specs=self.specs, out_specs=self.specs[0], check_vma=False)
        found: Array = run(*given)
        return found
