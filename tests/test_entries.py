"""Every kind of memory equals its definition, token by token, whatever is fed and committed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import few_slots_a_tile
from tiny_entries import KINDS, VOCAB, WINDOW, Kind

from specjax.core import trees
from specjax.core.cache import Cache, Recurrent
from specjax.core.cache.block import put, widen
from specjax.core.triangular import solve_unit_lower
from specjax.core.view import View

ROWS = 3
ATTENDING = ("full", "rounded", "ring", "latent", "latent_written")
WIDE = trees.chain(WINDOW + 3)  # a chunk wider than the window
TREE = (0, 0, 0, 1, 1, 2, 4, 6)  # eight guesses on three levels, not in the order of levels


@pytest.fixture(params=[*KINDS, *(f"{name}, tiled" for name in ATTENDING)])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kind]:
    """Also with attention that goes over tiles of few slots, or does so where that is cheaper."""
    name, _, tiled = request.param.partition(", ")
    if not tiled:
        yield KINDS[name]
        return
    sizes = (1, 1) if name == "ring" else (3, 3)
    cost = 1.0 if "earlier" in request.node.name else 1.5
    with few_slots_a_tile(monkeypatch, sizes, cost):
        yield KINDS[name]


@contextlib.contextmanager
def precise(kind: Kind) -> Iterator[float]:
    """Float64 where the entry allows it. Gives the error that is left."""
    with jax.enable_x64(kind.exact):
        yield 1e-12 if kind.exact else 2e-5


class Texts:
    """A cache of one entry beside the texts [B] that it should remember."""

    def __init__(self, kind: Kind, slots: int, seed: int):
        self.kind, self.rng = kind, np.random.default_rng(seed)
        self.cache = Cache((kind.empty(ROWS, slots, kind.dtype),), jnp.zeros((ROWS,), jnp.int32))
        self.texts: list[list[int]] = [[] for _ in range(ROWS)]
        self.worst = 0.0

    def tokens(self, size: int) -> np.ndarray:
        return self.rng.integers(VOCAB, size=(ROWS, size), dtype=np.int32)

    def feed(self, tokens: np.ndarray, view: View, before: Any = None) -> Any:
        """Output and part; poison where nothing may be seen changes no bit."""
        given = (jnp.asarray(tokens), self.cache.length, before, view)
        out, part = self.kind.feed(self.cache.layers[0], *given)
        again, _ = self.kind.feed(self.cache.stale().layers[0], *given)
        np.testing.assert_array_equal(out, again)
        return out, part

    def compare(self, b: int, out: Any, line: list[int]) -> None:
        """``out`` [F] is the output of the last of the tokens ``line`` behind the text of row b."""
        want = self.kind.define(self.texts[b] + line, len(self.texts[b]))
        self.worst = max(self.worst, float(np.abs(np.asarray(out) - want).max()))

    def commit(self, part: Any, tokens: np.ndarray, paths: list[list[int]]) -> None:
        """Row b keeps the places ``paths[b]``."""
        size = tokens.shape[1]
        path = np.zeros((ROWS, size), np.int32)
        for b, places in enumerate(paths):
            path[b, : len(places)] = places
            self.texts[b] = self.texts[b] + tokens[b, places].tolist()
        count = jnp.asarray([len(p) for p in paths], jnp.int32)
        self.cache = _commit(self.cache, (part,), count, jnp.asarray(path))
        assert self.cache.length.tolist() == [len(t) for t in self.texts]


_commit = jax.jit(Cache.commit)


def lines(parents: trees.Parents) -> list[list[int]]:
    """The places from the pending token to each place."""
    return [np.flatnonzero(line).tolist() for line in trees.ancestors(parents)]


def test_entries_equal_their_definition(kind: Kind) -> None:
    """Random blocks, counts and paths, chains and trees, wider than the window, growing."""
    with precise(kind) as tolerance:
        t, counts = Texts(kind, 12, seed=3), set()
        for i in range(8):
            parents, view = (WIDE, View.chain(len(WIDE) + 1)) if i % 2 else (TREE, View.tree(TREE))
            if i == 1:
                t.cache = t.cache.grow(90)
            tokens, line = t.tokens(len(parents) + 1), lines(parents)
            out, part = t.feed(tokens, view)
            for b, place in np.ndindex(tokens.shape):
                t.compare(b, out[b, place], tokens[b, line[place]].tolist())
            kept = [line[leaf] for leaf in t.rng.integers(3, len(parents) + 1, size=ROWS)]
            kept = [p[: t.rng.integers(len(p) + 1)] for p in kept]
            counts |= {len(p) for p in kept}
            t.commit(part, tokens, kept)
        assert t.worst < tolerance, t.worst
        assert 0 in counts and len(counts) > 4 and min(map(len, t.texts)) > 2 * WINDOW


def test_what_was_fed_earlier_waits_in_a_block(kind: Kind) -> None:
    """A draft's cycle: padding, then a token at a time, behind what was fed and rubbish."""
    width = 6
    with precise(kind) as tolerance:
        t = Texts(kind, 40, seed=5)
        for i in range(5):
            tokens = t.tokens(width)
            padded = t.rng.integers(2, size=ROWS).astype(bool) if i else np.ones(ROWS, bool)
            depth = np.arange(width)[None] - padded[:, None]
            real = (np.arange(width)[None] >= padded[:, None])[:, None]
            causal = np.tri(width, dtype=bool)[None] & (real | np.eye(width, dtype=bool)[None])
            out, part = t.feed(tokens[:, :2], View(depth[:, :2], causal[:, :2, :2]))
            outs, block = [out[:, 0], out[:, 1]], rubbish(part, width)
            for j in range(2, width):
                seen = np.append(real & (np.arange(width) < j), np.ones((ROWS, 1, 1), bool), 2)
                view = View(np.append(depth, depth[:, j : j + 1], 1), seen)
                out, part = t.feed(tokens[:, j : j + 1], view, before=block)
                block = put((block,), (part,), jnp.int32(j))[0]
                outs.append(out[:, 0])
            for b in range(ROWS):
                for j in range(int(padded[b]), width):
                    t.compare(b, outs[j][b], tokens[b, int(padded[b]) : j + 1].tolist())
            kept = [np.arange(p, t.rng.integers(width + 1)).tolist() for p in padded.astype(int)]
            t.commit(block, tokens, kept)
        assert t.worst < tolerance, t.worst


def rubbish(part: Any, size: int) -> Any:
    """``part`` with room for ``size`` tokens, of which the rest are the largest numbers."""
    num = part[0].shape[-2]
    place = jnp.arange(size)[:, None] < num
    wide = widen((part,), size)[0]
    return jax.tree.map(
        lambda x: jnp.where(
            place.reshape((1,) * (x.ndim - 2) + place.shape), x, jnp.finfo(x.dtype).max
        ),
        wide,
    )


@pytest.mark.parametrize("name", KINDS)
def test_chunks_change_nothing(name: str) -> None:
    """A prompt in one chunk, in several, and one that is longer than what is solved at once."""
    kind, size = KINDS[name], 300
    if name == "ring_from_start":
        pytest.skip("what it sees is where a block begins")
    with precise(kind) as tolerance:
        whole = Texts(kind, size, seed=7)
        text = whole.tokens(size)
        out, part = whole.feed(text, View.chain(size))
        whole.commit(part, text, [list(range(size))] * ROWS)
        whole.texts = [[] for _ in range(ROWS)]
        for place in (0, WINDOW, 255, 256, size - 1):
            whole.compare(0, out[0, place], text[0, : place + 1].tolist())
        pieces, at = Texts(kind, size, seed=7), 0
        for width in (64, 64, 44, 64, 64):
            one, part = pieces.feed(text[:, at : at + width], View.chain(width))
            np.testing.assert_allclose(one, out[:, at : at + width], atol=tolerance, rtol=0)
            pieces.commit(part, text[:, at : at + width], [list(range(width))] * ROWS)
            at += width
        assert at == size and whole.worst < tolerance
        a, b = (x.cache.stale().layers[0] for x in (whole, pieces))
        for ours, other in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
            np.testing.assert_allclose(ours, other, atol=20 * tolerance, rtol=20 * tolerance)


def test_no_slots_is_no_text() -> None:
    """What training asks for: the block is the whole sequence."""
    for name, kind in KINDS.items():
        with precise(kind) as tolerance:
            t, view = Texts(kind, 0, seed=1), View.chain(WINDOW + 3)
            tokens = t.tokens(WINDOW + 3)
            out, _ = t.feed(tokens, view)
            for place in range(WINDOW + 3):
                t.compare(0, out[0, place], tokens[0, : place + 1].tolist())
            assert t.worst < tolerance, name


def test_a_strong_decay_costs_no_digits() -> None:
    """One token that makes a head forget, and what follows is as exact as without it."""
    rng, size = np.random.default_rng(2), 64
    q, k, v = (rng.normal(size=(1, 1, size, n)) for n in (6, 6, 5))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    decay = np.full((1, 1, size, 1), -0.01)
    decay[0, 0, 7] = -10_000.0
    beta = rng.uniform(size=(1, 1, size, 1))

    def run(dtype: Any) -> Any:
        entry = Recurrent.empty(1, 1, 6, 5, channels=1, taps=1, dtype=dtype)
        given = (jnp.asarray(x, dtype) for x in (q, k, v, decay, beta))
        out, part = entry.recur(*given, None, View.chain(size))
        part = (jnp.zeros((1, size, 1), dtype), *part)
        return out, entry.commit(part, jnp.zeros((1,), jnp.int32), jnp.array([size], jnp.int32))

    with jax.enable_x64(True):
        want = jax.device_get(jax.jit(run, static_argnums=0)(jnp.float64))
    got = jax.jit(run, static_argnums=0)(jnp.float32)
    for ours, exact in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_allclose(ours, exact, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("size", [1, 2, 9, 16, 17, 100])
def test_unit_triangular_systems(size: int) -> None:
    """What lies on the diagonal and above does not count, whatever it is."""
    rng = np.random.default_rng(size)
    lower, right = rng.normal(size=(2, 3, size, size)), rng.normal(size=(2, 3, size, 4))
    want = np.linalg.solve(np.eye(size) + np.tril(lower, -1) / size, right)
    junk = np.where(np.tri(size, k=-1, dtype=bool), lower / size, rng.normal(size=lower.shape))
    with jax.enable_x64(True):
        got = jax.jit(solve_unit_lower)(jnp.asarray(junk), jnp.asarray(right))
    np.testing.assert_allclose(got, want, atol=1e-12, rtol=1e-12)


def test_gradients_of_the_delta_rule() -> None:
    """What training takes through a block, longer than what is unrolled, against differences."""
    rng, size = np.random.default_rng(4), 20
    q, k, v = (rng.normal(size=(1, 2, size, n)) for n in (3, 3, 2))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    decay, beta = -rng.uniform(size=(2, 1, 2, size, 1)) * [[[[[1.0]]]], [[[[-1.0]]]]]
    with jax.enable_x64(True):
        entry = Recurrent.empty(1, 2, 3, 2, channels=1, taps=1, dtype=jnp.float64)
        given = tuple(map(jnp.asarray, (q, k, v, decay, beta)))

        @jax.jit
        def loss(*given: jax.Array) -> jax.Array:
            out, _ = entry.recur(*given, None, View.chain(size))
            return (out**2).sum()

        slopes = jax.grad(loss, argnums=range(5))(*given)
        for i, slope in enumerate(slopes):
            step = jnp.asarray(rng.normal(size=given[i].shape)) * 1e-6
            ahead, behind = (
                loss(*given[:i], given[i] + sign * step, *given[i + 1 :]) for sign in (1, -1)
            )
            want = (slope * step).sum()
            np.testing.assert_allclose((ahead - behind) / 2, want, rtol=1e-5)
