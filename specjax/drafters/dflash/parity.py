"""The arrays of a golden file of the DFlash family, computed here: see `Spec.outputs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core.types import Array
from specjax.drafters.dflash.drafter import embed, head
from specjax.drafters.dflash.net import Blocks, DFlashConfig
from specjax.drafters.tapped import tapped
from specjax.models.frozen import Frozen
from specjax.models.target import Target
from specjax.models.vocabulary import Vocabulary


def outputs(
    target: Target, spec: Any, golden: Mapping[str, np.ndarray], prompt: np.ndarray
) -> dict[str, Array]:
    config: DFlashConfig = spec.net.config
    anchor = jnp.asarray(golden["anchor"], jnp.int32)[:1]
    out = _pass(spec.net, target.net.vocabulary, jnp.asarray(golden["context"]), anchor)
    context = tapped(target.net, jnp.asarray(prompt), config.taps)
    return {"context": context, **{k: v[0] for k, v in out.items()}}


@jax.jit
def _pass(net: Frozen, vocabulary: Vocabulary, context: Array, anchor: Array) -> dict[str, Array]:
    config: DFlashConfig = net.config
    module, length = net.module, context.shape[0]
    masks = jnp.full((config.block_size - 1,), config.mask_token_id, jnp.int32)
    x = embed(module, config, vocabulary, jnp.concatenate([anchor, masks])[None])
    blocks = Blocks.at(jnp.full((1, 1), length, jnp.int32), config.block_size)
    look = blocks.looking_at(module.context(context[None], jnp.arange(length)[None]), config)
    h = module.block(x, blocks.positions, blocks.offsets, look)
    logits = head(module, config, vocabulary, h[:, config.block_size - config.max_guesses :])
    out = {"context_proj": module.fuse(context[None]), "draft_hidden": h, "draft_logits": logits}
    if config.selector_rank:
        out["candidate_ids"] = jax.lax.top_k(logits, config.selector_top_k)[1]
    return out
