"""A loss over many positions, a chunk at a time, its gradient formed where the loss is.

Logits over the vocabulary would be the largest arrays of a step. Here they exist for one chunk of
positions, forward and backward: a chunk's gradient is taken as soon as its loss is known, by what
was fed to it and by the weights that it used, and the backward pass only scales both (as the fused
cross entropy of Hsu et al. 2024, arXiv:2410.10989, does). So a head is multiplied with once forward
and once back, nothing is computed twice, and of a head that is not trained there is no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.sharding import pieces
from specjax.core.types import Array
from specjax.train.room import logits_room

Params = dict[str, Array]

# (params, states, given) of one chunk -> the loss [], what else is added up over chunks, and what
# is put side by side. Only the loss has a gradient.
ChunkLoss = Callable[[Params, Any, Any], tuple[Array, Any, Any]]


def over_chunks(loss: ChunkLoss, params: Params, states: Any, given: Any) -> tuple[Array, Any, Any]:
    """``loss`` of every chunk, added up.

    Args:
      loss: of a chunk. What it closes over must not be differentiated (`jax.lax.stop_gradient`).
      params: by name; gradients are formed of those that ``loss`` uses, summed in float32.
      states: a pytree of arrays [n, ...] of floats, the chunks one after the other, differentiated.
      given: a pytree of arrays [n, ...] that are not.

    Returns:
      The three results of ``loss``: the first two added up, the third [n, ...].
    """
    first = jax.tree.map(lambda x: x[0], (states, given))
    names = _used(loss, params, *first)
    others = jax.lax.stop_gradient({n: p for n, p in params.items() if n not in names})
    given = jax.lax.stop_gradient(given)

    def of(used: Params, states: Any, given: Any) -> tuple[Array, tuple[Any, Any]]:
        total, sums, beside = loss({**others, **used}, states, given)
        return total, (sums, beside)

    def scanned(one: Callable[..., Any], states: Any, given: Any) -> tuple[Any, Any]:
        """``one`` of each chunk, which returns what is added up and what is put side by side."""
        chunk = jax.tree.map(lambda x: x[0], (states, given))
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, *chunk)[0])

        def add(so_far: Any, chunk: Any) -> tuple[Any, Any]:
            added, beside = one(*chunk)
            return jax.tree.map(jnp.add, so_far, added), beside

        return jax.lax.scan(add, zero, (states, given))

    @jax.custom_vjp
    def summed(used: Params, states: Any) -> Any:
        def one(states: Any, given: Any) -> Any:
            total, (sums, beside) = of(used, states, given)
            return (total, sums), beside

        (total, sums), beside = scanned(one, states, given)
        return total, sums, beside

    def forward(used: Params, states: Any) -> Any:
        slope = jax.value_and_grad(of, argnums=(0, 1), has_aux=True)

        def one(states: Any, given: Any) -> Any:
            (total, (sums, beside)), (by_weights, by_states) = slope(used, states, given)
            by_weights = jax.tree.map(lambda g: g.astype(jnp.float32), by_weights)
            return (total, sums, by_weights), (beside, by_states)

        (total, sums, by_weights), (beside, by_states) = scanned(one, states, given)
        like = lambda g, p: g.astype(p.dtype)
        return (total, sums, beside), (jax.tree.map(like, by_weights, used), by_states)

    def backward(gradients: Any, cotangents: Any) -> Any:
        by = cotangents[0]
        found: Any = jax.tree.map(lambda g: (by * g.astype(by.dtype)).astype(g.dtype), gradients)
        return found

    summed.defvjp(forward, backward)
    found: tuple[Array, Any, Any] = summed({n: params[n] for n in names}, states)
    return found


def _used(loss: ChunkLoss, params: Params, states: Any, given: Any) -> list[str]:
    """The names of ``params`` that a chunk's loss is computed from."""
    closed = jax.make_jaxpr(loss)(params, states, given)
    read = {id(v) for eqn in closed.jaxpr.eqns for v in eqn.invars}
    read |= {id(v) for v in closed.jaxpr.outvars}
    places = dict(zip(sorted(params), closed.jaxpr.invars))  # a dict's leaves come sorted
    return [name for name in params if id(places[name]) in read]


def positions_at_once(rows: int, vocab_size: int) -> int:
    """Positions a row of ``rows`` whose logits [.., V] fit into what a chunk may take."""
    here = max(rows // pieces("batch"), 1) * max(vocab_size // pieces("vocab"), 1)
    return max(logits_room() // (4 * here), 1)


def shares(num: int, most: int) -> int:
    """The size of the fewest equal shares of ``num`` of at most ``most``."""
    return -(-num // -(-num // max(most, 1)))


def cut(x: Array, size: int) -> Array:
    """[B, N, ..] -> [n, B, size, ..], padded with zeros; with [B, N] bool that is nothing kept."""
    size = min(size, x.shape[1])
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(x.shape[0], -1, size, *x.shape[2:]).swapaxes(0, 1)
