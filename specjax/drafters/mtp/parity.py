"""The arrays of a golden file of a head for further tokens, computed here: see `Spec.outputs`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core.cache.base import Cache
from specjax.core.types import Array
from specjax.core.view import View, causal
from specjax.models.frozen import Frozen
from specjax.models.target import Target
from specjax.models.vocabulary import Vocabulary


def outputs(target: Target, spec: Any, golden: Mapping[str, np.ndarray]) -> dict[str, Array]:
    """From states ``prev_hidden`` [S, D]: logits of one step, or of several fed with the text.

    A step of several reads every pair anew: token t + 1 + j beside what step j - 1 made of the
    pair at t, each seeing the pairs of its own step before it.
    """
    ids, x = jnp.asarray(golden["input_ids"], jnp.int32), jnp.asarray(golden["prev_hidden"])
    vocabulary = target.net.vocabulary
    if "mtp_logits" in golden:
        _, normed, logits = _step(spec.net, vocabulary, x, ids[1 : 1 + len(x)], 0)
        return {"mtp_logits": logits, "mtp_hidden_postnorm": normed}
    steps, length, _ = golden["mtp_logits_steps"].shape
    found = []
    for j in range(steps):
        tokens, head = ids[1 + j : 1 + j + length], min(j, spec.net.config.heads - 1)
        x, _, logits = _step(spec.net, vocabulary, x[:length], tokens, head)
        found.append(logits)
    return {"mtp_logits_steps": jnp.stack(found)}


@functools.partial(jax.jit, static_argnames="head")
def _step(
    net: Frozen, vocabulary: Vocabulary, x: Array, tokens: Array, head: int
) -> tuple[Array, Array, Array]:
    """States to feed back and for the head [S, D], logits [S, V], of one causal pass."""
    cache: Cache = net.module.init_cache(1, 0)
    view = View(jnp.arange(len(x))[None], causal(len(x)))
    fed, normed, _ = net.module(x[None], vocabulary.embed(tokens[None]), cache, view, head=head)
    return fed[0], normed[0], vocabulary.head(normed[0])
