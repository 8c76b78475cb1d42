"""Every kind of memory in toy size, beside its definition: one text, token by token, in numpy.

A token is looked up in tables of raw queries, keys, values and gates, so that nothing but the entry
and what its layer reads it by is between a text and its outputs:

    kind = KINDS["ring"]
    entry = kind.empty(rows, slots)
    out, part = kind.feed(entry, tokens, length, before, view)      [B, T, F], what to commit
    kind.define(text, start)                                        [F] of the text's last token
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core.cache import Full, Latent, Recurrent, Ring, Rounded
from specjax.core.cache.block import Part, join

VOCAB, HEADS, GROUPS, HEAD, VALUE, ROTARY, RANK, WINDOW, TAPS = 11, 4, 2, 6, 5, 4, 7, 5, 4


@functools.cache
def table(name: str, *shape: int) -> np.ndarray:
    """[V, *shape] float64, the same in every process."""
    rng = np.random.default_rng([ord(c) for c in name])
    return rng.normal(size=(VOCAB, *shape))


def look(name: str, tokens: Any, *shape: int, dtype: Any) -> jax.Array:
    """Of tokens [B, T]: [B, N, T, H], or [B, T, C] for a ``shape`` of one number."""
    rows = jnp.asarray(table(name, *shape), dtype)[tokens]
    return rows.swapaxes(1, 2) if len(shape) == 2 else rows


def merge(x: jax.Array) -> jax.Array:
    """[B, N, T, H] -> [B, T, N * H]."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


@dataclasses.dataclass(frozen=True)
class Kind:
    """``exact``: it works in any type, float64 included; else scores are float32."""

    empty: Callable[[int, int, Any], Any]
    read: Callable[..., tuple[jax.Array, Part]]
    define: Callable[[list[int], int], np.ndarray]
    exact: bool = False

    def feed(self, entry: Any, tokens: Any, length: Any, before: Any, view: Any) -> Any:
        return _feed(self.read, entry, tokens, length, before, view)

    @property
    def dtype(self) -> Any:
        return jnp.float64 if self.exact else jnp.float32


@functools.partial(jax.jit, static_argnums=0)
def _feed(read: Any, entry: Any, tokens: Any, length: Any, before: Any, view: Any) -> Any:
    return read(entry, tokens, length, before, view)


# --- softmax over everything, and over a window ---------------------------------------------------


def _attend(entry, tokens, length, before, view):
    q = look("q", tokens, HEADS, HEAD, dtype=jnp.float32)
    k = look("k", tokens, GROUPS, HEAD, dtype=jnp.float32)
    v = look("v", tokens, GROUPS, VALUE, dtype=jnp.float32)
    return merge(entry.attend(q, join(before, (k, v)), length, view)), (k, v)


def _softmax(text: list[int], oldest: int) -> np.ndarray:
    """Of the last token, which sees those from ``oldest`` on."""
    q, k, v = (table(n, *s)[text] for n, s in _QKV.items())
    k, v = (np.repeat(x, HEADS // GROUPS, axis=1)[max(oldest, 0) :] for x in (k, v))
    return _weigh(np.einsum("nh,tnh->nt", q[-1], k) * HEAD**-0.5, v)


_QKV = {"q": (HEADS, HEAD), "k": (GROUPS, HEAD), "v": (GROUPS, VALUE)}


def _in_8_bits(x: np.ndarray) -> np.ndarray:
    """[V, N, H], each vector rounded to 127 steps of its largest number either way."""
    factor = np.abs(x).max(-1, keepdims=True) / 127
    return np.round(x / factor) * factor


def _softmax_rounded(text: list[int]) -> np.ndarray:
    q, k, v = (table(n, *s)[text] for n, s in _QKV.items())
    k, v = (np.repeat(_in_8_bits(x), HEADS // GROUPS, axis=1) for x in (k, v))
    return _weigh(np.einsum("nh,tnh->nt", q[-1], k) * HEAD**-0.5, v)


def _new_rounded(rows: int, slots: int, dtype: Any) -> Rounded:
    return Rounded.like(_new(Full)(rows, slots, dtype), "int8")


def _weigh(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Scores [N, T], values [T, N, Hv] -> [N * Hv]."""
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("nt,tnv->nv", weights, values).reshape(-1)


def _new(cls: Any, **kwargs: Any) -> Callable[..., Any]:
    """Keys as wide as values: `Full.empty` makes both alike, so values are cut to size here."""

    def empty(rows: int, slots: int, dtype: Any) -> Any:
        entry = cls.empty(rows, slots, GROUPS, HEAD, dtype, **kwargs)
        return dataclasses.replace(entry, values=entry.values[..., :VALUE])

    return empty


# --- one compressed vector a token ----------------------------------------------------------------

_UP = np.random.default_rng(8).normal(size=(HEADS, HEAD + VALUE, RANK)) * RANK**-0.5
_SCALE = 0.3


def _latent(entry, tokens, length, before, view, *, written):
    q = look("q", tokens, HEADS, HEAD, dtype=jnp.float32)
    rotary = look("r", tokens, HEADS, ROTARY, dtype=jnp.float32)
    part = tuple(
        look(name, tokens, 1, size, dtype=jnp.float32)
        for name, size in (("kr", ROTARY), ("c", RANK))
    )
    new, up = join(before, part), jnp.asarray(_UP, jnp.float32)
    if written:

        def write(r, c):
            both = jnp.einsum("bsc,nhc->bnsh", c[:, 0], up)
            shared = jnp.broadcast_to(r, (*both.shape[:3], ROTARY))
            return jnp.concatenate([both[..., :HEAD], shared], -1), both[..., HEAD:]

        both = jnp.concatenate([q, rotary], -1)
        return merge(entry.attend_written(both, new, length, view, write, scale=_SCALE)), part
    absorbed = jnp.einsum("bnth,nhc->bntc", q, up[:, :HEAD])
    out = entry.attend((rotary, absorbed), new, length, view, scale=_SCALE)
    return merge(jnp.einsum("bntc,nhc->bnth", out, up[:, HEAD:])), part


def _define_latent(text: list[int], start: int) -> np.ndarray:
    c = table("c", 1, RANK)[text][:, 0]
    keys, values = np.split(np.einsum("tc,nhc->tnh", c, _UP), [HEAD], -1)
    scores = np.einsum("nh,tnh->nt", table("q", HEADS, HEAD)[text[-1]], keys)
    rotary = table("r", HEADS, ROTARY)[text[-1]] @ table("kr", 1, ROTARY)[text][:, 0].T
    return _weigh(_SCALE * (scores + rotary), values)


# --- recurrences ----------------------------------------------------------------------------------

_CHANNELS = HEADS * (2 * HEAD + VALUE)
_KERNEL = np.random.default_rng(9).normal(size=(TAPS, _CHANNELS))


def _recur(entry, tokens, length, before, view, *, corrected):
    dtype = entry.state.dtype
    inputs = look("m", tokens, _CHANNELS, dtype=dtype)
    fed, rest = (None, None) if before is None else (before[0], before[1:])
    mixed = entry.convolve(join(fed, inputs), jnp.asarray(_KERNEL, dtype), view)
    rows, size = tokens.shape
    q, k, v = (
        x.reshape(rows, size, HEADS, -1).swapaxes(1, 2)
        for x in jnp.split(mixed, [HEADS * HEAD, 2 * HEADS * HEAD], -1)
    )
    k = k / jnp.sqrt((k * k).sum(-1, keepdims=True))
    gates = look("g", tokens, HEADS, 2, dtype=dtype)
    decay, beta = -jax.nn.softplus(gates[..., :1]), jax.nn.sigmoid(gates[..., 1:])
    out, part = entry.recur(q, k, v, decay, beta if corrected else None, rest, view)
    return merge(out), (inputs, *part)


def _define_recurrence(text: list[int], start: int, *, corrected: bool) -> np.ndarray:
    inputs = np.pad(table("m", _CHANNELS)[text], ((TAPS - 1, 0), (0, 0)))
    state, out = np.zeros((HEADS, HEAD, VALUE)), np.zeros((HEADS, VALUE))
    for t, token in enumerate(text):
        mixed = (_KERNEL * inputs[t : t + TAPS]).sum(0)
        q, k, v = (x.reshape(HEADS, -1) for x in np.split(mixed, [HEADS * HEAD, 2 * HEADS * HEAD]))
        k = k / np.sqrt((k * k).sum(-1, keepdims=True))
        g = table("g", HEADS, 2)[token]
        state = state / (1 + np.exp(g[:, 0]))[:, None, None]  # e^-softplus(g)
        if corrected:
            held = np.einsum("nhv,nh->nv", state, k)
            v = (v - held) / (1 + np.exp(-g[:, 1:]))
        state = state + k[:, :, None] * v[:, None, :]
        out = np.einsum("nhv,nh->nv", state, q)
    return out.reshape(-1)


def _no_text(rows: int, slots: int, dtype: Any) -> Recurrent:
    del slots
    return Recurrent.empty(rows, HEADS, HEAD, VALUE, channels=_CHANNELS, taps=TAPS, dtype=dtype)


def _of_latent(rows: int, slots: int, dtype: Any) -> Latent:
    return Latent.empty(rows, slots, ROTARY, RANK, dtype)


KINDS = {
    "full": Kind(_new(Full), _attend, lambda text, start: _softmax(text, 0)),
    "rounded": Kind(_new_rounded, _attend, lambda text, start: _softmax_rounded(text)),
    "ring": Kind(
        _new(Ring, window=WINDOW), _attend, lambda text, start: _softmax(text, len(text) - WINDOW)
    ),
    "ring_from_start": Kind(
        _new(Ring, window=WINDOW, from_start=True),
        _attend,
        lambda text, start: _softmax(text, start - WINDOW),
    ),
    "latent": Kind(_of_latent, functools.partial(_latent, written=False), _define_latent),
    "latent_written": Kind(_of_latent, functools.partial(_latent, written=True), _define_latent),
    "delta": Kind(
        _no_text,
        functools.partial(_recur, corrected=True),
        functools.partial(_define_recurrence, corrected=True),
        exact=True,
    ),
    "recurrence": Kind(
        _no_text,
        functools.partial(_recur, corrected=False),
        functools.partial(_define_recurrence, corrected=False),
        exact=True,
    ),
}
