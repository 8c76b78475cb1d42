"""A target, block by block, with every kind of entry that it has, beside one pass over the text.

Random blocks, chains and trees, narrow ones and some wider than small windows, are fed behind a
cache that grows on the way; random counts and paths of them are committed. Twice other texts
follow that begin as they do, as in another turn of a conversation. What each pass gives, at
every layer, is compared with one pass over the same text without a cache.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.checkpoint.load import Model
from specjax.core import trees
from specjax.core.cache import Cache, Mark
from specjax.core.types import Array, Parents
from specjax.core.view import View
from specjax.lab.audit.rounding import Steps, steps_of

ROWS, SLOTS, MORE_SLOTS = 3, 32, 64
TREE: Parents = (0, 0, 1, 1, 2, 3)  # six guesses on three levels
WIDE = 11  # tokens: more than a small window
ROUNDS = 10
TURNS = (4, 7)  # rounds behind which the texts change; a mark is set two rounds before
GROWS = 6  # the round before which there is more room, at the latest
# Of the largest value of a layer's states. In bfloat16 a block's width changes what is rounded.
TOLERANCES = {"float32": 2e-4, "bfloat16": 0.1}


@dataclasses.dataclass(frozen=True)
class Round:
    """One block behind a cache, and what came of it."""

    kind: str  # in words
    lengths: np.ndarray  # [B] of the cache before it
    tokens: np.ndarray  # [B, T]
    got: np.ndarray  # [B, T, L + 1, D] states: embedding, then the output of each layer
    stale: np.ndarray  # the same behind a cache whose stale places are poisoned
    want: np.ndarray  # the same of whole texts, without a cache
    steps: list[Steps]  # of a cache that rounds: where it differs from that of one pass


@functools.partial(jax.jit, static_argnames="parents")
def score(net: Any, cache: Cache, tokens: Array, parents: Parents | None) -> tuple[Array, Any]:
    """States [B, T, L + 1, D] of a block, and what the cache must commit of it."""
    view = None if parents is None else View.tree(parents)
    out = net(tokens, cache, view=view, taps=tuple(range(net.config.num_layers + 1)))
    return split(net, out.features), out.block


@functools.partial(jax.jit, static_argnames="num_first")
def score_in_parts(net: Any, cache: Cache, tokens: Array, *, num_first: int) -> Array:
    """The states of a chain that is fed in two passes, the second with the block of the first."""
    taps = tuple(range(net.config.num_layers + 1))
    first = net(tokens[:, :num_first], cache, taps=taps)
    rest = net(tokens[:, num_first:], cache, before=first.block, taps=taps)
    return split(net, jnp.concatenate([first.features, rest.features], axis=1))


def split(net: Any, features: Array) -> Array:
    """All layers' states side by side -> [B, T, L + 1, D]."""
    return features.reshape(*features.shape[:2], net.config.num_layers + 1, -1)


@jax.jit
def commit(cache: Cache, block: Any, count: Array, path: Array | None) -> Cache:
    return cache.commit(block, count, path)


@jax.jit
def whole(net: Any, texts: Array, place: Array) -> Array:
    """The states [N, L + 1, D] at ``place`` [N] of texts [N, S], in one pass without a cache."""
    out = net(texts, taps=tuple(range(net.config.num_layers + 1)))
    states = split(net, out.features)
    return jnp.take_along_axis(states, place[:, None, None, None], axis=1)[:, 0]


def states_of(target: Model, lines: Sequence[Sequence[int]]) -> np.ndarray:
    """[N, L + 1, D] of the last token of each line, in batches of one shape."""
    size, found = ROWS * (len(TREE) + 1), []
    for start in range(0, len(lines), size):
        some = lines[start : start + size]
        texts = np.zeros((size, MORE_SLOTS), np.int32)
        for text, line in zip(texts, some):
            text[: len(line)] = line
        place = np.asarray([len(line) - 1 for line in some] + [0] * (size - len(some)))
        states = whole(target.net, jnp.asarray(texts), jnp.asarray(place, jnp.int32))
        found.append(np.asarray(states, np.float32)[: len(some)])
    return np.concatenate(found)


def rounds(target: Model, seed: int) -> Iterator[Round]:
    """Blocks of all kinds, one behind the other."""
    rng = np.random.default_rng((seed, 2))
    net, V = target.net, target.config.vocab_size
    cache, texts = net.init_cache(ROWS, SLOTS), [[] for _ in range(ROWS)]  # type: ignore[var-annotated]
    kinds = (("a chain", None, 4), ("a tree", TREE, len(TREE) + 1), ("a wide chain", None, WIDE))
    longest, slots = 0, SLOTS
    for i in range(ROUNDS):
        kind, parents, size = kinds[i % len(kinds)]
        if slots == SLOTS and (longest + size > SLOTS or i == GROWS):
            cache, slots = cache.grow(MORE_SLOTS), MORE_SLOTS
        tokens = rng.integers(0, V, size=(ROWS, size)).astype(np.int32)
        fed = jnp.asarray(tokens)
        got, block = score(net, cache, fed, parents)
        stale, _ = score(net, cache.stale(), fed, parents)
        tree = trees.chain(size - 1) if parents is None else parents
        routes, depths = trees.routes(tree), trees.depths(tree)
        lines = [
            [*texts[b], *tokens[b, routes[w][: depths[w] + 1]].tolist()]
            for b, w in np.ndindex(tokens.shape)
        ]
        want = states_of(target, lines).reshape(got.shape)
        lengths = np.asarray([len(text) for text in texts])
        kind += " in another turn" if i > TURNS[0] else ""
        steps = steps_of(net, cache, texts, MORE_SLOTS)
        yield Round(kind, lengths, tokens, np.asarray(got), np.asarray(stale), want, steps)

        leaf = rng.integers(0, size, size=ROWS) if parents else np.full(ROWS, size - 1)
        count = rng.integers(0, depths[leaf] + 2).astype(np.int32)
        path = None if parents is None else jnp.asarray(routes[leaf])
        cache = commit(cache, block, jnp.asarray(count), path)
        for b, text in enumerate(texts):
            text += tokens[b, routes[leaf[b]][: count[b]]].tolist()
        if i + 2 in TURNS:
            mark = cache.mark(cache.loses(MORE_SLOTS))
        if i in TURNS:
            cache = another_turn(cache, mark, slots)
            texts = [text[:n] for text, n in zip(texts, cache.length.tolist())]
        longest = max(map(len, texts))


def another_turn(cache: Cache, mark: Mark, slots: int) -> Cache:
    """Row 0 goes on, row 1 is cut or begins anew, row 2 comes back to ``mark``."""
    at = cache.length.tolist()
    cache = cache.back(mark, jnp.arange(ROWS) == 2, slots)
    to = [at[0], 3 * at[1] // 4, int(mark.length[2])]
    return cache.cut(jnp.asarray(to, jnp.int32))


def by_width(target: Model, seed: int, k: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """One text fed in blocks of k + 1 tokens, and in other ways: (which, states of both)."""
    rng, net = np.random.default_rng((seed, 3)), target.net
    blocks = max(2, 12 // (k + 1))
    tokens = rng.integers(0, target.config.vocab_size, (ROWS, blocks * (k + 1))).astype(np.int32)

    def feed(width: int) -> tuple[np.ndarray, list[Cache]]:
        cache, states, caches = net.init_cache(ROWS, MORE_SLOTS), [], []
        for start in range(0, tokens.shape[1], width):
            caches.append(cache)
            some = jnp.asarray(tokens[:, start : start + width])
            got, block = score(net, cache, some, None)
            cache = commit(cache, block, jnp.full((ROWS,), width, jnp.int32), None)
            states.append(np.asarray(got, np.float32))
        return np.concatenate(states, axis=1), caches

    wide, caches = feed(k + 1)
    yield "one token at a time", wide, feed(1)[0]
    start, first = (blocks - 1) * (k + 1), (k + 1) // 2
    if first:
        last = jnp.asarray(tokens[:, start:])
        parts = score_in_parts(net, caches[-1], last, num_first=first)
        way = "in two parts, the second with the block of the first"
        yield way, wide[:, start:], np.asarray(parts)
