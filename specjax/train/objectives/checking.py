"""Whether an objective of a user's own is one, by the shape of what it returns; nothing is run."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from specjax.core.by_shape import Misfit, by_shape, is_ours, shape
from specjax.train.objectives.base import Batch


def check_objective(objective: Any, params: Any, target: Any, rows: int, seq_len: int) -> None:
    """Raises ValueError, in one line, on a loss or matches that a training run cannot use.

    Args:
      objective: of which all fields are set.
      params: its network's masters.
      target: the frozen target.
      rows: B of a batch.
      seq_len: T.
    """
    if is_ours(objective):
        return
    name, size = type(objective).__name__, (rows, seq_len)
    like: Any = jax.ShapeDtypeStruct
    batch = Batch(like(size, jnp.int32), like(size, jnp.bool_), like((rows,), jnp.int32))
    key = jax.eval_shape(lambda: jax.random.key(0))
    found = by_shape(f"{name}()", objective, params, batch, target, key)
    if not isinstance(found, tuple) or len(found) != 3 or not isinstance(found[2], dict):
        raise Misfit(f"{name}() must return (loss, weight, a dict of sums).")
    loss, weight, sums = found
    for what, x in (("loss", loss), ("weight", weight), *sums.items()):
        if shape(x) != "float32[]":
            raise Misfit(f"{name}(): {what} is {shape(x)}; must be float32[], a sum.")
    matches = by_shape(f"{name}.matches()", objective.matches, params, batch, target)
    wanted = f"bool{[*size, objective.num_draft]}"
    if shape(matches) != wanted:
        raise Misfit(f"{name}.matches() is {shape(matches)}; must be {wanted}, [B, T, K].")
