"""A mixture of experts: of many gated MLPs, those that a router chose for each token.

Reading the weights is what an expert costs while few tokens are fed, so that each one that any
token chose is read once (`distinct`); what many tokens cost is the products, so that there each
token is multiplied by its own experts only (`grouped`). `every` is the reference.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.ops.linear import linear, xlas
from specjax.core.ops.op import Op
from specjax.core.platform import Platform
from specjax.core.quantised import Quantised, axes_of
from specjax.core.sharding import axis_size, pieces, spec
from specjax.core.trips import expected, expected_groups, expected_share
from specjax.core.types import Array, pytree, static

Mix = Callable[[Array, Array], Array]  # (gate x, up x) [M, I] float32 each -> [M, I]
Weights = Array | Quantised
_FEW = 32  # tokens of one pass: a verify pass, or the last piece of a prompt


def gated_silu(gate: Array, up: Array) -> Array:
    """As in a dense SwiGLU."""
    return jax.nn.silu(gate) * up


@pytree
class Stack:
    """E experts ``down(mix(gate x, up x))``, one behind the other."""

    gate: Weights  # [E, I, D]
    up: Weights  # [E, I, D]
    down: Weights  # [E, D, I]
    gate_bias: Array | None = None  # [E, I]
    up_bias: Array | None = None  # [E, I]
    mix: Mix = static(default=gated_silu)
    turned: bool = static(default=False)  # down is [E, I, D]

    @property
    def num(self) -> int:
        """E."""
        return self.gate.shape[0]

    def partition(self) -> Any:
        """How its arrays lie on the mesh of the context."""
        axes: dict[str, tuple[str | None, ...]] = {"down": ("experts", None, "mlp")}
        axes |= dict.fromkeys(("gate", "up"), ("experts", "mlp", None))
        axes |= dict.fromkeys(("gate_bias", "up_bias"), ("experts", "mlp"))

        def place(held: Weights | None, axes: tuple[str | None, ...]) -> Any:
            if not isinstance(held, Quantised):
                return None if held is None else spec(axes)
            pieces = axes_of(axes, held.groups, held.zeros is not None)
            where: Any = {name: spec(a) for name, a in pieces.items()}
            return dataclasses.replace(held, **where)

        there = {name: place(getattr(self, name), a) for name, a in axes.items()}
        return dataclasses.replace(self, **there)

    def of(self, expert: Array, x: Array, platform: Platform | None) -> Array:
        """What one expert, a number [], makes of ``x`` [M, D]: [M, D] float32, without its bias."""

        def product(x: Array, weights: Weights, biases: Array | None = None) -> Array:
            take = lambda w: jax.lax.dynamic_index_in_dim(w, expert, keepdims=False)
            one, bias = jax.tree.map(take, (weights, biases))
            if weights is self.down and self.turned:
                one = _turned(one)
            # (A kernel of our own would take a copy of the expert's matrix.)
            return linear(x, one, bias, platform=xlas(platform))

        gate, up = product(x, self.gate, self.gate_bias), product(x, self.up, self.up_bias)
        return product(self.mix(gate, up).astype(x.dtype), self.down)

    def as_it_lies(self) -> Stack:
        """With ``down`` as a TPU stores it: the axis last that fills tiles of 8 by 128 better.

        A loop takes its arrays as they are written, and the compiler copies a whole stack before a
        loop that takes it in another order than it lies in; here turning it moves nothing.
        """
        if isinstance(self.down, Quantised) and not self.down.by_row:
            return self  # bytes lie in other tiles
        width, inner = self.down.shape[1:]
        padded = lambda rows, lanes: -(-rows // 8) * 8 * (-(-lanes // 128) * 128)
        if padded(inner, width) >= padded(width, inner):
            return self
        return dataclasses.replace(self, down=_turned(self.down), turned=True)


def _turned(weights: Weights) -> Weights:
    if isinstance(weights, Quantised):
        return dataclasses.replace(weights, values=weights.values.mT)
    return weights.mT


def shares(chosen: Array, weights: Array, num: int) -> Array:
    """The weight of each expert for each token: [M, k] numbers and weights to [E, M] float32.

    A number that is none of ``num`` experts, as of one that lies on another device, has none.
    """
    return jnp.where(_hits(chosen, num), weights[:, :, None], 0).sum(1).T


def _hits(chosen: Array, num: int) -> Array:
    """[M, k, E] bool."""
    return chosen[:, :, None] == jnp.arange(num, dtype=chosen.dtype)[None, None, :]


def every(
    x: Array, chosen: Array, weights: Array, stack: Stack, platform: Platform | None
) -> Array:
    """All experts on all tokens."""
    share = shares(chosen, weights, stack.num)

    @jax.checkpoint
    def add(total: Array, expert: Array) -> tuple[Array, None]:
        mine: Array = jax.lax.dynamic_index_in_dim(share, expert, keepdims=False)
        return total + mine[:, None] * stack.of(expert, x, platform), None

    zeros = jnp.zeros(x.shape, jnp.float32)
    total: Array = jax.lax.scan(add, zeros, jnp.arange(stack.num, dtype=jnp.int32))[0]
    return total


def distinct(
    x: Array, chosen: Array, weights: Array, stack: Stack, platform: Platform | None
) -> Array:
    """Each expert that any token chose on all tokens, in the order of their numbers."""
    share = shares(chosen, weights, stack.num)
    hit = _hits(chosen, stack.num).any((0, 1))
    order = jnp.argsort(~hit, stable=True)

    def add(i: Array, total: Array) -> Array:
        mine: Array = jax.lax.dynamic_index_in_dim(share, order[i], keepdims=False)
        return total + mine[:, None] * stack.of(order[i], x, platform)

    zeros = jnp.zeros(x.shape, jnp.float32)
    total: Array = jax.lax.fori_loop(0, hit.sum(dtype=jnp.int32), add, zeros)
    return total


def grouped(
    x: Array, chosen: Array, weights: Array, stack: Stack, platform: Platform | None
) -> Array:
    """Choices sorted by expert, and multiplied a few rows of one expert at a time.

    What a tile writes behind the rows of its expert is overwritten by the tiles of the next.
    """
    (num_tokens, width), k, num = x.shape, chosen.shape[1], stack.num
    size = _tile(num_tokens * k, num)
    here = (chosen >= 0) & (chosen < num)  # those elsewhere stand behind all others
    flat = jnp.where(here, chosen, num).reshape(-1)
    order = jnp.argsort(flat, stable=True)  # [M * k], of choices
    in_group = _hits(chosen, num).sum((0, 1), dtype=jnp.int32)
    tiles = -(-in_group // size)
    last_tile, last_row = jnp.cumsum(tiles), jnp.cumsum(in_group)
    rows = jnp.pad(x[order // k], ((0, size), (0, 0)))

    def fill(i: Array, made: Array) -> Array:
        expert = jnp.searchsorted(last_tile, i, side="right").astype(jnp.int32)
        nth = i - (last_tile[expert] - tiles[expert])
        start = last_row[expert] - in_group[expert] + nth * size
        some = jax.lax.dynamic_slice_in_dim(rows, start, size)
        out = stack.of(expert, some, platform)
        return jax.lax.dynamic_update_slice_in_dim(made, out, start, 0)

    made = jax.lax.fori_loop(0, last_tile[-1], fill, jnp.zeros(rows.shape, jnp.float32))
    each = made[jnp.argsort(order)].reshape(num_tokens, k, width)
    return jnp.where(here[:, :, None], each * weights[:, :, None], 0).sum(1)


def _tile(choices: int, num: int) -> int:
    """Rows of one product: about as many as an expert has, a power of two."""
    size = 8
    while size < 128 and size * num < choices:
        size *= 2
    return size


def _trips(tokens: int, k: int, here: int, num: int) -> float:
    """How often the loop of `by_size` is expected to run: ``here`` of ``num`` experts lie here."""
    if tokens <= _FEW:
        return here * expected_share(k / num, tokens)
    return here * expected_groups(k / num, tokens, _tile(tokens * k, here))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def by_size(
    x: Array, chosen: Array, weights: Array, stack: Stack, platform: Platform | None
) -> Array:
    """Few tokens read few experts, many would multiply in vain."""
    way = distinct if x.shape[0] <= _FEW else grouped
    return way(x, chosen, weights, stack, platform)


def _by_size_fwd(
    x: Array, chosen: Array, weights: Array, stack: Stack, platform: Platform | None
) -> tuple[Array, tuple[Array, Array, Array, Stack]]:
    return by_size(x, chosen, weights, stack, platform), (x, chosen, weights, stack)


def _by_size_bwd(
    platform: Platform | None, saved: tuple[Array, Array, Array, Stack], g: Array
) -> tuple[Array, None, Array, Stack]:
    # A loop of unknown length has no derivative; one over all experts has.
    x, chosen, weights, stack = saved
    again = lambda x, weights, stack: every(x, chosen, weights, stack, platform)
    dx, dweights, dstack = jax.vjp(again, x, weights, stack)[1](g)
    return dx, None, dweights, dstack


by_size.defvjp(_by_size_fwd, _by_size_bwd)


def on_tpu(
    x: Array, chosen: Array, weights: Array, stack: Stack, platform: Platform | None
) -> Array:
    found: Array = by_size(x, chosen, weights, stack.as_it_lies(), platform)
    return found


EXPERTS = Op(every, {"cpu": by_size, "gpu": by_size, "tpu": on_tpu})


def experts(
    x: Array,
    chosen: Array,
    weights: Array,
    stack: Stack,
    *,
    platform: Platform | None = None,
    replicated: bool = False,
) -> Array:
    """The weighted sum of what chosen experts make of each token.

    On a mesh every device adds up what lies on it, its share of the experts (axis ``experts``) and
    of their width (axis ``model``), and the sums are added once.

    Args:
      x: [B, T, D].
      chosen: [B, T, k] int32, different ones of the E experts.
      weights: [B, T, k] float32.
      stack: their weights.
      platform: that it is written for; None: JAX's default devices.
      replicated: every device of the mesh has all of them.

    Returns:
      [B, T, D] float32.
    """
    k, num = chosen.shape[-1], stack.num

    def local(x: Array, chosen: Array, weights: Array, stack: Stack) -> Array:
        flat = (x.reshape(-1, x.shape[-1]), chosen.reshape(-1, k), weights.reshape(-1, k))
        with expected(_trips(flat[0].shape[0], k, stack.num, num)):
            found: Array = EXPERTS.on(platform)(*flat, stack, platform)
        return found.reshape(x.shape)

    split = [n for n in ("experts", "model") if axis_size(n) > 1]
    if replicated or not split:
        return local(x, chosen, weights, stack)

    def share(x: Array, chosen: Array, weights: Array, stack: Stack) -> Array:
        if "experts" in split:
            chosen = chosen - stack.num * jax.lax.axis_index("experts")
        total: Array = jax.lax.psum(local(x, chosen, weights, stack), tuple(split))
        return total

    rows = "batch" if x.shape[0] % pieces("batch") == 0 else None
    tokens = spec((rows, None, None))
    run = jax.shard_map(
        share,
        in_specs=(tokens, tokens, tokens, stack.partition()),
        out_specs=tokens,
        check_vma=False,
    )
    found: Array = run(x, chosen, weights, stack)
    return found
