"""The parts of a plain step, timed alone: its matrix products, and the whole pass."""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.ops import activation_dtype
from specjax.core.program import Program
from specjax.core.types import Array
from specjax.models import Frozen


class Part:
    """A compiled loop of part of a step, whose time is a cost."""

    def __init__(self, run: Any, *args: Any):
        """``run``: of ``args`` and the number of steps, an int32."""
        self._program, self._args = Program(run), args
        self._run(1)

    def seconds(self, *, steps: int, repeats: int = 1) -> float:
        """Seconds of a step: the median over the repeats."""
        return statistics.median(self._run(steps) / steps for _ in range(repeats))

    def _run(self, steps: int) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(self._program(*self._args, jnp.int32(steps)))
        return time.perf_counter() - begin


def products_alone(net: Frozen, *, tokens: int = 1) -> Part:
    """The matrix products of a pass over ``tokens``: no attention, norm, rotation, verdict."""

    def run(net: Any, x: Array, steps: Array) -> Array:
        module = net.module
        heads = net.config.num_heads // net.config.num_kv_heads

        def body(_: Array, x: Array) -> Array:
            for layer in module.layers:
                a, m = layer.self_attn, layer.mlp
                q, k, v = a.products("qkv_proj", x)
                mixed = q + jnp.tile(k + v, (1, 1, heads))
                x = jnp.tanh(x + a.o_proj(mixed))
                gate, up = m.products("gate_up_proj", x)
                x = jnp.tanh(x + m.down_proj(gate * up))
            top = module.head(x).max(-1, keepdims=True)
            return jnp.tanh(x + top.astype(x.dtype))  # so that the next step waits for the head

        return jax.lax.fori_loop(0, steps, body, x)

    dtype = activation_dtype(net.module.norm.weight[...].dtype)
    x = jax.random.normal(jax.random.key(1), (1, tokens, net.config.hidden_size), dtype)
    return Part(run, net, x)


def pass_alone(net: Frozen, *, slots: int, length: int) -> Part:
    """One model pass with its argmax: nothing is committed or verified."""
    cache = jax.jit(lambda net: net.init_cache(1, slots))(net)
    cache = cache.assume(jnp.asarray([length], jnp.int32))

    def run(net: Any, cache: Any, steps: Array) -> Array:
        def body(_: Array, guess: Array) -> Array:
            return net.head(net(guess, cache).hidden).argmax(-1).astype(jnp.int32)

        return jax.lax.fori_loop(0, steps, body, jnp.ones((1, 1), jnp.int32))

    return Part(run, net, cache)
