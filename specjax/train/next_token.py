"""The training of language models: windows of a text, and the loss of the next token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from specjax.core.sharding import constrain
from specjax.core.types import Array
from specjax.models.frozen import Frozen
from specjax.models.registry import family
from specjax.train import losses
from specjax.train.chunks import cut, over_chunks, positions_at_once, shares
from specjax.train.state import Params, Skeleton
from specjax.train.step import Objective, Sums


def build(raw: Mapping[str, Any], seed: int, *, model_axis: int = 1) -> tuple[Skeleton, Params]:
    """A freshly initialised float32 model of a Hugging Face config."""
    model = family(raw.get("model_type"))
    config = model.read_config(raw).for_model_axis(model_axis)
    return Skeleton.of(model(config, dtype=jnp.float32, rngs=nnx.Rngs(seed)))


def windows(stream: np.ndarray, *, seed: int, step: int, rows: int, seq_len: int) -> np.ndarray:
    """The batch of one step: a pure function of (seed, step).

    Every epoch cuts the stream at a new offset into windows that do not overlap, and visits them
    in a new order; a batch may span two epochs.

    Args:
      stream: [N] token ids.
      rows: windows a batch.

    Returns:
      [rows, seq_len + 1] int32: inputs and, one to the right, targets.
    """
    per_epoch = (len(stream) - 1) // seq_len - 1
    if per_epoch < 1:
        raise ValueError(f"The text has {len(stream)} tokens; seq_len={seq_len} needs twice that.")
    batch = np.empty((rows, seq_len + 1), np.int32)
    first = step * rows
    for epoch in range(first // per_epoch, (first + rows - 1) // per_epoch + 1):
        rng = np.random.default_rng((seed, epoch))
        offset = int(rng.integers(seq_len))
        order = rng.permutation(per_epoch)
        begin = max(first, epoch * per_epoch)
        end = min(first + rows, (epoch + 1) * per_epoch)
        for sample in range(begin, end):
            start = offset + int(order[sample - epoch * per_epoch]) * seq_len
            batch[sample - first] = stream[start : start + seq_len + 1]
    return batch


def heldout_batches(stream: np.ndarray, *, rows: int, seq_len: int) -> list[np.ndarray]:
    """The stream [N] as batches [rows, seq_len + 1] in order, without what is left over."""
    count = (len(stream) - 1) // seq_len // rows * rows
    if not count:
        raise ValueError(f"The held-out text is shorter than one batch of {rows} x {seq_len}.")
    cut = np.stack([stream[i * seq_len : (i + 1) * seq_len + 1] for i in range(count)])
    return list(cut.astype(np.int32).reshape(-1, rows, seq_len + 1))


def make_objective(
    skeleton: Skeleton, *, compute_dtype: jnp.dtype = jnp.bfloat16, distill: float = 0.0
) -> Objective:
    """``(1 - distill) * cross entropy + distill * KL(teacher || model)`` of tokens [B, T + 1].

    The forward KL term (Hinton et al. 2015, arXiv:1503.02531; for drafts Zhou et al. 2023,
    arXiv:2310.08461) asks the model for the teacher's whole distribution at every position. Logits
    exist for a chunk of positions at a time (`over_chunks`).
    """

    def objective(
        params: Params, tokens: Array, teacher: Frozen | None, key: Array
    ) -> tuple[Array, Array, Sums]:
        del key
        params = {name: p.astype(compute_dtype) for name, p in params.items()}
        inputs, labels = constrain(tokens[:, :-1], "batch", None), tokens[:, 1:]
        net = skeleton.module(params)
        states = net(inputs).hidden
        vocab_size = jax.eval_shape(net.head, states).shape[-1]
        final = None if teacher is None else teacher(inputs).hidden

        def one(params: Params, h: Array, given: tuple[Array, Array, Array | None]) -> Any:
            labels, counted, final = given
            logits = skeleton.module(params).head(h)
            loss = losses.cross_entropy(logits, labels)
            if distill:
                assert teacher is not None and final is not None
                wanted = teacher.head(final)
                loss = (1 - distill) * loss + distill * losses.forward_kl(wanted, logits)
            return jnp.where(counted, loss, 0.0).sum(), (), ()

        size = shares(inputs.shape[1], positions_at_once(len(inputs), vocab_size))
        given = (labels, jnp.ones(labels.shape, jnp.bool_), final)
        states, given = jax.tree.map(lambda x: cut(x, size), (states, given))
        total, _, _ = over_chunks(one, params, states, given)
        return total, jnp.float32(labels.size), {}

    return objective
