"""How many experts of a mixture several tokens go to together: what a verify pass reads of them.

One token reads k of the E experts of a layer. The K + 1 tokens of a verify pass read the union of
theirs, so that accepting more guesses costs more bytes: on a mixture the speedup is tau against
that union. It is counted behind a generation, in a replay of its trace through the target: inside
the compiled cycle the counts would be written and kept for nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.checkpoint.load import Model
from specjax.core import hosts, sharding, trees
from specjax.core.cache import Cache
from specjax.core.trips import expected_share
from specjax.core.types import Array, Parents
from specjax.core.view import View
from specjax.lab.records.experts import Union
from specjax.models import Frozen
from specjax.models.layers.experts import Mixture, MixtureConfig
from specjax.models.target import Target
from specjax.session.slots import Passes, bucket
from specjax.trace.clock import batches
from specjax.trace.trace import Cycle, Trace


def has_experts(target: Target) -> bool:
    """Whether its layers have mixtures of experts."""
    config = target.config
    return isinstance(config, MixtureConfig) and config.has_mixture


def distinct(target: Model, texts: Sequence[Sequence[int]], widths: Sequence[int]) -> list[float]:
    """The mean number of distinct experts a layer that neighbouring tokens of a text go to.

    Args:
      target: with mixtures of experts.
      texts: token ids, as the target wrote or read them; each is fed in one pass.
      widths: numbers of neighbouring tokens; a text shorter than one says nothing of it.

    Raises:
      ValueError: if the target has no experts, or no text is as long as the widest.
    """
    mixture = _mixture(target)
    if max(map(len, texts), default=0) < max(widths):
        raise ValueError(f"No text has the {max(widths)} tokens that are looked at together.")
    counts: dict[int, list[float]] = {width: [] for width in widths}
    for text in texts:
        tokens = jnp.asarray(text, jnp.int32)[None]
        with sharding.use_mesh(target.mesh):
            chosen = hosts.fetch(_chosen(target.net, tokens))
        hit = _hits(chosen, mixture.num)[:, 0]  # [L, S, E]
        for width in widths:
            for start in range(len(text) - width + 1):
                counts[width] += hit[:, start : start + width].any(1).sum(-1).tolist()
    return [float(np.mean(counts[width])) for width in widths]


def can_count(trace: Trace) -> bool:
    """Whether a trace tells what its passes fed: some, and which rows they had.

    Of a tree it has to tell every place.
    """
    parents = trace.about.parents
    whole = parents is None or all(len(c.proposed) == len(parents) for c in trace)
    if trace.about.in_turn and any(math.isnan(c.begin) for c in trace):
        return False
    return bool(trace.num_cycles and trace.texts) and whole


def count(target: Model, trace: Trace, *, fed: bool = True) -> Union:
    """What the passes of a recorded generation read: its blocks are fed again, guesses and all.

    Every pass has the rows, the guesses and the cache of the cycle that it repeats; where rows
    changed hands, texts are fed again side by side, and those count together whose cycles ran at
    one time. Rows that were done before the others are left out: what they read besides is
    nobody's.

    Args:
      target: that wrote it.
      trace: of `specjax.generate`, of one or several batches.
      fed: False: caches are only taken to hold the prompts (`lab.costs.programs`).

    Raises:
      ValueError: if the target has no experts, or the trace does not tell what was fed.
    """
    mixture, about = _mixture(target), trace.about
    if not can_count(trace):
        raise ValueError("This trace does not tell what its passes fed, so nothing is counted.")
    width = max(about.num_draft or 0, max(len(c.proposed) for c in trace)) + 1
    parents = None if about.parents is None else tuple(about.parents)
    found: dict[Any, _Pass] = {}
    size = about.batch or 1
    starts = range(0, len(trace.rows), size)
    groups = [range(s, min(s + size, len(trace.rows))) for s in starts]
    with sharding.use_mesh(target.mesh):
        for group, rows in enumerate(groups if about.in_turn else batches(trace)):
            replayed = _Batch(target, trace, rows, width, fed)
            step = 0
            while any(replayed.live):
                chosen, live = replayed.step(about.widths or (width - 1,), parents)
                hit = np.logical_or.accumulate(_hits(chosen[:, live], mixture.num), axis=2)
                for b, one in zip(live, np.moveaxis(hit, 1, 0), strict=True):
                    at = trace.rows[rows[b]][step].begin if about.in_turn else (group, step)
                    found.setdefault(at, _Pass()).add(one)
                step += 1
    means = np.mean([one.union(mixture, width) for one in found.values()], axis=0)
    return Union(mixture.num, mixture.chosen, *(tuple(side) for side in means.tolist()))


@dataclasses.dataclass
class _Pass:
    """The experts that one pass reads, by how many tokens of each row are counted."""

    rows: int = 0
    fed: int = 0
    packed: np.ndarray | None = None  # of [L, fed, E] bool, along E

    def add(self, hit: np.ndarray) -> None:
        """Another row, which goes to ``hit`` [L, fed, E]."""
        packed = np.packbits(hit, axis=-1)
        old = packed if self.packed is None else self.packed
        self.fed = max(old.shape[1], packed.shape[1])
        fill = [((0, 0), (0, self.fed - x.shape[1]), (0, 0)) for x in (old, packed)]
        self.packed = np.pad(old, fill[0], "edge") | np.pad(packed, fill[1], "edge")
        self.rows += 1

    def union(self, mixture: Mixture, width: int) -> np.ndarray:
        """[2, width]: how many a layer reads, and how many if each token drew for itself."""
        assert self.packed is not None
        hit = np.unpackbits(self.packed, axis=-1, count=mixture.num)
        tokens = np.arange(1, self.fed + 1) * self.rows
        share = [expected_share(mixture.chosen / mixture.num, int(n)) for n in tokens]
        both = np.stack([hit.sum(-1, dtype=np.int64).mean(0), mixture.num * np.asarray(share)])
        return np.pad(both, ((0, 0), (0, width - self.fed)), "edge")


class _Batch:
    """Rows that were decoded together, and the target's memory of them so far."""

    def __init__(self, target: Model, trace: Trace, rows: Sequence[int], width: int, fed: bool):
        shards = 1 if target.mesh is None else sharding.pieces("batch", target.mesh)
        size = max(trace.about.batch or 0, len(rows))
        self._cycles: list[Sequence[Cycle]] = [trace.rows[b] for b in rows]
        self._cycles += [()] * (-(-size // shards) * shards - len(rows))  # of the program's shape
        prompts = [list(trace.texts[b].prompt_tokens) for b in rows]
        self._texts = prompts + [prompts[0]] * (len(self._cycles) - len(rows))
        self._net, self._at, self._width = target.net, 0, width
        lengths = np.asarray([len(text) - 1 for text in self._texts])
        chunks = Passes().plan(int(lengths.max()))
        new = max(sum(c.committed for c in row) for row in self._cycles)
        most = max([int(lengths.max()) + 1 + new + width, *(s + w for s, w in chunks)])
        self._cache = _empty(target.net, rows=len(self._cycles), slots=bucket(most))
        if not fed:
            self._cache = self._cache.assume(jnp.asarray(lengths, jnp.int32))
            return
        for start, wide in chunks:
            tokens = np.zeros((len(self._texts), wide), np.int32)
            for row, text in zip(tokens, self._texts):
                part = text[start : min(start + wide, len(text) - 1)]
                row[: len(part)] = part
            counts = np.clip(lengths - start, 0, wide)
            self._feed(tokens, counts, None, None)

    @property
    def live(self) -> list[bool]:
        """Of each row, whether it took part in the next pass."""
        return [self._at < len(row) for row in self._cycles]

    def step(self, widths: Sequence[int], parents: Parents | None) -> tuple[np.ndarray, list[int]]:
        """The next pass: its choices [L, B, W, k], and which rows took part."""
        live = [b for b, there in enumerate(self.live) if there]
        now = {b: self._cycles[b][self._at] for b in live}
        most = max(len(c.proposed) for c in now.values())
        wide = 1 + next((w for w in sorted(widths) if w >= most), self._width - 1)
        tokens = np.zeros((len(self._cycles), wide), np.int32)  # what is no guess is fed as 0
        counts = np.zeros(len(tokens), np.int32)
        path = None
        if parents is not None:
            path = np.zeros((len(tokens), 1 + trees.num_levels(parents)), np.int32)
        for b, cycle in now.items():
            tokens[b, : len(cycle.proposed) + 1] = [self._texts[b][-1], *cycle.proposed]
            counts[b] = cycle.committed
            if path is not None:
                path[b, 1 : len(cycle.path) + 1] = [i + 1 for i in cycle.path]
            self._texts[b] = [*self._texts[b], *cycle.emitted]
        self._at += 1
        return self._feed(tokens, counts, path, parents), live

    def _feed(
        self,
        tokens: np.ndarray,
        counts: np.ndarray,
        path: np.ndarray | None,
        parents: Parents | None,
    ) -> np.ndarray:
        where = None if path is None else jnp.asarray(path)
        self._cache, chosen = _fed(
            self._net,
            self._cache,
            jnp.asarray(tokens),
            jnp.asarray(counts, jnp.int32),
            where,
            parents=parents,
        )
        found: np.ndarray = hosts.fetch(chosen)
        return found


def _mixture(target: Model) -> Mixture:
    if not isinstance(target.config, MixtureConfig) or not has_experts(target):
        raise ValueError(f"{target.name} has no experts.")
    return target.config.mixture


def _hits(chosen: np.ndarray, num: int) -> np.ndarray:
    """Numbers of experts [.., k] as [.., E] bool."""
    hit = np.zeros((*chosen.shape[:-1], num), bool)
    np.put_along_axis(hit, np.asarray(chosen), True, axis=-1)
    return hit


@functools.partial(jax.jit, static_argnames="parents", donate_argnames="cache")
def _fed(
    net: Frozen,
    cache: Cache,
    tokens: Array,
    counts: Array,
    path: Array | None,
    *,
    parents: Parents | None,
) -> tuple[Cache, Array]:
    """A pass over a block [B, W] whose first ``counts`` tokens (along ``path``) are committed."""
    module, found = _watched(net)
    view = None if parents is None else View.tree(parents)
    out = module(tokens, cache, view=view)
    return cache.commit(out.block, counts, path), jnp.stack(found)


@functools.partial(jax.jit, static_argnames=("rows", "slots"))
def _empty(net: Frozen, *, rows: int, slots: int) -> Cache:
    return net.init_cache(rows, slots)


@jax.jit
def _chosen(net: Frozen, tokens: Array) -> Array:
    """The experts [L, B, S, k] of layers with a mixture, of texts [B, S]."""
    module, found = _watched(net)
    module(tokens)
    return jnp.stack(found)


def _watched(net: Frozen) -> tuple[Any, list[Array]]:
    """Its module with routers that write down what they choose, and where they do."""
    found: list[Array] = []
    module = net.module  # merged anew: changing it leaves ``net`` as it is
    for layer in module.layers:
        if hasattr(layer.mlp, "router"):
            layer.mlp.router = _Watched(layer.mlp.router, found)
    return module, found


class _Watched:
    """A router that writes down what it chooses."""

    def __init__(self, router: Any, found: list[Array]):
        self._router, self._found = router, found

    def __call__(self, x: Array) -> tuple[Array, Array]:
        chosen, weights = self._router(x)
        self._found.append(chosen)
        return chosen, weights
