"""Whether an objective of a user's own is one, by the shape of what it returns, and packing."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core import hosts
from specjax.core.by_shape import Misfit, by_shape, is_ours, shape
from specjax.models.frozen import Frozen
from specjax.train.loop import COUNTS
from specjax.train.objectives.base import BaseObjective, Batch

# Units of the last place, by bytes: what sums in another order may come to. Of texts that see one
# another it is a hundred and more in bfloat16, and millions in float32.
_ROUNDING = {2: 8, 4: 64}


def unpacked(objective: Any) -> str:
    """Why it takes one text a row alone; "": it keeps the texts of a row apart.

    A class of a user's own has to say so itself: one of the library's that it extends spoke of its
    own methods.
    """
    says = next((c for c in type(objective).__mro__ if "unpacked" in vars(c)), BaseObjective)
    if not is_ours(objective) and says.__module__.startswith("specjax."):
        return BaseObjective.unpacked
    why: str = objective.unpacked
    return why


def check_packs(objective: Any) -> None:
    """Raises ValueError, in one line, on an objective that takes one text a row alone."""
    if why := unpacked(objective):
        raise ValueError(
            f"--config.data.pack=True: {type(objective).__name__} takes one text a row ({why}); "
            "leave it out."
        )


def check_objective(
    objective: Any, params: Any, target: Any, rows: int, seq_len: int, *, pack: bool = False
) -> None:
    """Raises ValueError, in one line, on a loss or matches that a training run cannot use.

    Args:
      objective: of which all fields are set.
      params: its network's masters.
      target: the frozen target.
      rows: B of a batch.
      seq_len: T.
      pack: whether a row may have several texts.
    """
    if is_ours(objective):
        return
    name, size = type(objective).__name__, (rows, seq_len)
    like: Any = jax.ShapeDtypeStruct
    batch = Batch(like(size, jnp.int32), like(size, jnp.bool_), like((rows,), jnp.int32))
    packed = dataclasses.replace(batch, begin=like(size, jnp.int32)) if pack else batch
    key = jax.eval_shape(lambda: jax.random.key(0))
    found = by_shape(f"{name}()", objective, params, packed, target, key)
    if not isinstance(found, tuple) or len(found) != 3 or not isinstance(found[2], dict):
        raise Misfit(f"{name}() must return (loss, weight, a dict of sums).")
    loss, weight, sums = found
    if taken := sorted({"loss", "weight", *COUNTS} & sums.keys()):
        raise Misfit(f"{name}(): a sum is named {taken[0]}, as one of the run's own; rename it.")
    for what, x in (("loss", loss), ("weight", weight), *sums.items()):
        if shape(x) != "float32[]":
            raise Misfit(f"{name}(): {what} is {shape(x)}; must be float32[], a sum.")
    matches = by_shape(f"{name}.matches()", objective.matches, params, batch, target)
    wanted = f"bool{[*size, objective.num_draft]}"
    if shape(matches) != wanted:
        raise Misfit(f"{name}.matches() is {shape(matches)}; must be {wanted}, [B, T, K].")


def check_apart(net: Frozen, name: str) -> None:
    """Raises ValueError, in one line, if what a model says of a text depends on others of its row.

    A family of a user's own is run on a few tokens; the library's, whose tests do so, are not.

    Args:
      net: the model.
      name: of it, for the message.
    """
    if not is_ours(net.module) and mixes(net):
        raise ValueError(
            f"--config.data.pack=True: {type(net.module).__name__}, the family of {name}, does not "
            "keep the texts of a row apart (a pass's view says what each token sees); leave it out."
        )


def mixes(net: Frozen) -> bool:
    """Whether a text's states change with what it shares a row with, or where it begins there."""
    size = min(net.config.vocab_size, 251)
    one, text = (np.arange(1, n) * 7 * n % size for n in (6, 9))
    rows = np.stack([[*one, *text], [*((one + 1) % size), *text], [*text, *one]])
    begin = np.array([[0] * 5 + [5] * 8, [0] * 5 + [5] * 8, [0] * 8 + [8] * 5])
    length = jnp.full((3,), 13, jnp.int32)
    batch = Batch(jnp.asarray(rows), jnp.ones(rows.shape, bool), length, jnp.asarray(begin))
    hidden = jax.jit(lambda net, batch: net(batch.tokens, view=batch.view).hidden)(net, batch)
    found = np.asarray(hosts.fetch(hidden).astype(jnp.float32))
    behind, beside, first = found[0, 5:], found[1, 5:], found[2, :8]
    most = max(np.abs(x - behind).max() for x in (beside, first))
    units = most / np.abs(behind).max() / float(jnp.finfo(hidden.dtype).eps)
    return not units <= _ROUNDING.get(hidden.dtype.itemsize, _ROUNDING[4])  # nor if it is NaN
