"""Where a greedy text leaves plain decoding's: by how much the target preferred the other token.

Passes over k + 1 tokens round differently from passes over one, so a near tie may flip, and the
texts differ for good from there on. A margin above what rounding explains is a bug.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.checkpoint.load import Model
from specjax.core import hosts
from specjax.core.sharding import use_mesh
from specjax.lab.records.run import Difference
from specjax.session.slots import bucket
from specjax.trace.trace import Trace

# In float32 with this much between two logits, a pass of another width does not swap them.
SUSPICIOUS = 1e-2


def differences(target: Model, ours: Trace, plain: Trace) -> list[Difference]:
    """Each request whose tokens differ: request, token, and margin there.

    The margin is the logit of plain decoding's token less that of ours, after the common text, by
    one pass without a cache. None where one text is only the beginning of the other.
    """
    found = []
    for request, (row, reference) in enumerate(zip(ours.rows, plain.rows, strict=True)):
        a, b = ([t for c in r for t in c.emitted] for r in (row, reference))
        if a == b:
            continue
        token = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None)
        margin = None
        if token is not None:
            prefix = [*plain.texts[request].prompt_tokens, *b[:token]]
            logits = next_logits(target, prefix)
            margin = float(logits[b[token]] - logits[a[token]])
        at = min(len(a), len(b)) if token is None else token
        found.append(Difference(request, at, margin))
    return found


@jax.jit
def _last(net: Any, tokens: jax.Array, last: jax.Array) -> jax.Array:
    one = jax.lax.dynamic_slice_in_dim(net(tokens).hidden, last, 1, axis=1)
    return net.head(one)[0, 0].astype(jnp.float32)


def next_logits(target: Model, prefix: list[int]) -> np.ndarray:
    """[V] float32: of the token behind ``prefix``, by one pass without a cache."""
    padded = np.zeros((1, bucket(len(prefix))), np.int32)
    padded[0, : len(prefix)] = prefix
    with use_mesh(target.mesh):
        found = _last(target.net, jnp.asarray(padded), jnp.int32(len(prefix) - 1))
        logits: np.ndarray = hosts.fetch(found)
        return logits
