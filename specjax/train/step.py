"""One step of training, whatever is trained: gradient, optimizer, sums for the log.

Master weights and gradients are float32; in which type the passes compute is the objective's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from specjax.core.types import Array
from specjax.train.state import Params, TrainState

Sums = dict[str, Array]
# (params, batch, target, key) -> the loss as a sum, its weight, and further sums for the log.
# The batch is any pytree of arrays [B, ...]; the target any pytree that is not trained.
Objective = Callable[[Params, Any, Any, Array], tuple[Array, Array, Sums]]


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int = 0,
    shardings: TrainState | None = None,
) -> Callable[[TrainState, Any, Any], tuple[TrainState, Sums]]:
    """One optimizer step, jitted, its state donated.

    The step takes a batch whose arrays are [A, B, ...], A micro-batches, and the frozen target. It
    returns the new state and the sums of the objective over all of them, ``loss`` and ``weight``
    among them; the gradient is that of ``loss / weight``. Randomness is a function of the seed,
    the step and the micro-batch, so that a resumed run draws what the first one drew.

    ``shardings`` of the state are those it has and keeps; None: there is no mesh.
    """

    def step(state: TrainState, batch: Any, target: Any) -> tuple[TrainState, Sums]:
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)

        def gradient(index: Array, micro: Any) -> tuple[Sums, Params]:
            def total(params: Params) -> tuple[Array, Sums]:
                key = jax.random.fold_in(step_key, index)
                loss, weight, sums = objective(params, micro, target, key)
                return loss, {"loss": loss, "weight": weight, **sums}

            (_, sums), grads = jax.value_and_grad(total, has_aux=True)(state.params)
            return sums, grads

        num = jax.tree.leaves(batch)[0].shape[0]
        if num == 1:
            sums, grads = gradient(jnp.int32(0), jax.tree.map(lambda x: x[0], batch))
        else:

            def add(carry: tuple[Sums, Params], x: Any) -> tuple[tuple[Sums, Params], None]:
                return jax.tree.map(jnp.add, carry, gradient(*x)), None

            pieces = (jnp.arange(num), batch)
            shapes = jax.eval_shape(gradient, *jax.tree.map(lambda x: x[0], pieces))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            (sums, grads), _ = jax.lax.scan(add, zeros, pieces)
        weight = jnp.maximum(sums["weight"], 1e-8)  # a batch without a label teaches nothing
        grads = jax.tree.map(lambda g: g / weight, grads)
        if shardings is not None:
            grads = jax.lax.with_sharding_constraint(grads, shardings.params)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts and floats
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), sums

    if shardings is None:
        return jax.jit(step, donate_argnums=0)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
