"""The arrays of a golden file of EAGLE-3, computed here: see `Spec.outputs`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core.cache.block import join
from specjax.core.types import Array
from specjax.core.view import View, causal
from specjax.drafters.eagle3.net import Eagle3Config
from specjax.drafters.tapped import tapped
from specjax.models.frozen import Frozen
from specjax.models.target import Target
from specjax.models.vocabulary import Vocabulary


def outputs(
    target: Target, spec: Any, golden: Mapping[str, np.ndarray], prompt: np.ndarray
) -> dict[str, Array]:
    config: Eagle3Config = spec.net.config
    ids, taps = jnp.asarray(golden["input_ids"], jnp.int32), jnp.asarray(golden["taps"])
    out = {"taps": tapped(target.net, jnp.asarray(prompt), config.taps)}
    to_target = jnp.arange(config.draft_vocab_size)
    if spec.target_ids is not None:
        to_target = jnp.asarray(spec.target_ids)
    out |= {
        "d2t": to_target - jnp.arange(config.draft_vocab_size),
        "t2d": jnp.zeros(config.backbone.vocab_size, bool).at[to_target].set(True),
        "tap_layers": jnp.asarray(config.taps),
    }
    steps = len(golden["ttt_logits"]) if "ttt_logits" in golden else 1
    fused, states, logits = _steps(spec.net, target.net.vocabulary, taps, ids, steps)
    out |= {"fc_out": fused, "draft_hidden": states, "draft_logits": logits[0]}
    out |= {"ttt_logits": logits, "ttt_draft_ids": logits.argmax(-1)}
    if "chain_logits" in golden:
        count = len(golden["chain_logits"])
        chain = _chain(spec.net, target.net.vocabulary, taps, ids, to_target, count)
        out["chain_logits"] = chain
    return out


@functools.partial(jax.jit, static_argnames="steps")
def _steps(
    net: Frozen, vocabulary: Vocabulary, taps: Array, ids: Array, steps: int
) -> tuple[Array, Array, Array]:
    """Steps over the whole text whose tokens are the text's own, each fed the states before it.

    Query t of a step sees the pairs 0..t of the first step and its own column of the later ones.

    Returns:
      Fused features [S, D], states of the first step [S, D], logits [steps, S, V_draft].
    """
    module, length = net.module, taps.shape[0]
    fused = module.fuse(taps[None])
    x, logits, first, before = fused, [], None, None
    place, cache = jnp.arange(length)[None], net.init_cache(1, 0)
    for step in range(steps):
        visible = jnp.concatenate(
            [causal(length), *[jnp.eye(length, dtype=bool)[None]] * step], axis=-1
        )
        view = View(jnp.concatenate([place + i for i in range(step + 1)], axis=1), visible)
        tokens = ids[1 + step : 1 + step + length]
        tokens = jnp.pad(tokens, (0, length - len(tokens)))  # behind the text, as the reference
        x, normed, block = module(x, _embed(net, vocabulary, tokens[None]), cache, view, before)
        before = join(before, block)
        first = x if first is None else first
        logits.append(module.head(normed, vocabulary)[0])
    assert first is not None
    return fused[0], first[0], jnp.stack(logits)


def _chain(
    net: Frozen, vocabulary: Vocabulary, taps: Array, ids: Array, to_target: Array, count: int
) -> Array:
    """Logits [count, V_draft] of greedy guesses behind the text, each pass over all of it."""
    length = taps.shape[0]
    x = jnp.pad(net.module.fuse(taps[None])[0], ((0, count - 1), (0, 0)))
    tokens = jnp.pad(ids[1 : length + 1], (0, count - 1))
    chain = []
    for i in range(length - 1, length - 1 + count):
        state, logits = _causal(net, vocabulary, x, tokens, jnp.int32(i))
        chain.append(logits)
        if i + 1 < length - 1 + count:
            x = x.at[i + 1].set(state)
            tokens = tokens.at[i + 1].set(to_target[logits.argmax()].astype(jnp.int32))
    return jnp.stack(chain)


@jax.jit
def _causal(
    net: Frozen, vocabulary: Vocabulary, x: Array, tokens: Array, place: Array
) -> tuple[Array, Array]:
    """One causal pass over pairs: the state [D] and the logits [V_draft] at ``place``."""
    embedded, cache = _embed(net, vocabulary, tokens[None]), net.init_cache(1, 0)
    states, normed, _ = net.module(x[None], embedded, cache, View.chain(x.shape[0]))
    return states[0, place], net.module.head(normed, vocabulary)[0, place]


def _embed(net: Frozen, vocabulary: Vocabulary, tokens: Array) -> Array:
    return net.module.embed_tokens(tokens) if net.config.own_embedding else vocabulary.embed(tokens)
