"""Compares a loaded drafter with the outputs of its reference implementation.

Each kind of drafter has one function that computes, from the inputs in the golden file, every array
of it that a chain of guesses has. Draft passes start from the golden's own taps, which the target's
are compared with separately. Whole generations are the caller's: they need the decoding loop.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.load import Model
from specjax.checkpoint.parity import Comparison, Tolerances, compare_arrays
from specjax.core.attend import attend
from specjax.core.types import Array
from specjax.core.view import causal
from specjax.drafters.dflash import embed, head
from specjax.drafters.dflash.net import Blocks, DFlashConfig
from specjax.drafters.eagle3.net import Eagle3Config
from specjax.drafters.medusa.net import MedusaConfig
from specjax.models.frozen import Frozen
from specjax.models.vocabulary import Vocabulary

# What golden files hold besides outputs.
_INPUTS = ("input_ids", "anchor", "tree_params", "typical_params")
# Arrays of trees and of rules that are not lossless, by how their names begin.
_TREES = ("tree_", "mc63_", "candidates", "greedy_best", "greedy_accept", "typical_")


@dataclasses.dataclass(frozen=True)
class DraftTolerances(Tolerances):
    """As for targets, by the names of a drafter's arrays."""

    def of(self, name: str, golden: np.ndarray) -> float:
        if golden.dtype.kind in "iub":
            return 0.0
        return self.logits if name.endswith("logits") else self.hidden


def compare_drafter(
    target: Model,
    spec: Any,
    golden: Mapping[str, np.ndarray],
    tolerances: DraftTolerances,
    *,
    prompt: np.ndarray,
    generated: Mapping[str, np.ndarray],
) -> list[Comparison]:
    """Compares every array that a chain drafter has, and lists the others with the reason.

    Args:
      target, spec: loaded in float32.
      golden: the file's arrays.
      tolerances: largest differences that pass.
      prompt: [S] int32, the text whose taps the golden holds.
      generated: what the decoding loop made: ``e2e_tokens``, ``e2e_produced``, and so on.

    Raises:
      CheckpointError: if a model is not float32, or there is no comparison for this drafter.
    """
    outputs = _OUTPUTS.get(type(getattr(getattr(spec, "net", None), "config", None)))
    if outputs is None:
        raise CheckpointError(
            f"No golden file is known for {type(spec).__name__} drafters; compare a language model "
            "as a target, without --target."
        )
    if target.dtype != np.float32:
        raise CheckpointError(f"Parity is defined in float32, but the target is {target.dtype}.")
    with jax.default_matmul_precision("highest"):
        made = {**outputs(target, spec, golden, prompt), **generated}
    ours = {name: np.asarray(value) for name, value in made.items()}
    theirs = {name: np.asarray(value) for name, value in golden.items()}
    if "candidate_ids" in ours and "candidate_ids" in theirs:  # the reference's are in no order
        ours["candidate_ids"] = np.sort(ours["candidate_ids"], axis=-1)
        theirs["candidate_ids"] = np.sort(theirs["candidate_ids"], axis=-1)
    rows = compare_arrays(ours, theirs, _INPUTS, tolerances)
    return [_explain(row) for row in rows]


def prompt_of(golden: Mapping[str, Any], target_golden: Mapping[str, Any] | None) -> np.ndarray:
    """The text [S] that the draft arrays belong to; EAGLE's ids hold the token after it too.

    Raises:
      CheckpointError: if neither golden file has it.
    """
    taps = next((golden[k] for k in ("context", "taps", "features") if k in golden), None)
    if taps is None:
        raise CheckpointError("The golden file is none of a drafter: it lacks the tapped states.")
    source = golden if "input_ids" in golden else target_golden or {}
    if "input_ids" not in source:
        raise CheckpointError(
            "The golden file lacks input_ids, and so does a golden.npz beside the target."
        )
    return np.asarray(source["input_ids"], np.int32)[: len(taps)]


def _explain(row: Comparison) -> Comparison:
    if row.difference is not None:
        return row
    if row.name.startswith(_TREES):
        note = "of a tree, or of a rule that is not lossless: this drafter is a chain"
    elif row.name == "e2e_accept":
        note = "the reference run drafts trees; its tokens are compared"
    else:
        note = row.note
    return dataclasses.replace(row, note=note)


@functools.partial(jax.jit, static_argnames="taps")
def _taps(net: Frozen, tokens: Array, taps: tuple[int, ...]) -> Array:
    """[S] -> [S, F]."""
    features = net(tokens[None], taps=taps).features
    assert features is not None
    return features[0]


def _dflash(
    target: Model, spec: Any, golden: Mapping[str, np.ndarray], prompt: np.ndarray
) -> dict[str, Array]:
    config: DFlashConfig = spec.net.config
    anchor = jnp.asarray(golden["anchor"], jnp.int32)[:1]
    out = _dflash_pass(spec.net, target.net.vocabulary, jnp.asarray(golden["context"]), anchor)
    context = _taps(target.net, jnp.asarray(prompt), config.taps)
    return {"context": context, **{k: v[0] for k, v in out.items()}}


@jax.jit
def _dflash_pass(
    net: Frozen, vocabulary: Vocabulary, context: Array, anchor: Array
) -> dict[str, Array]:
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


def _medusa(
    target: Model, spec: Any, golden: Mapping[str, np.ndarray], prompt: np.ndarray
) -> dict[str, Array]:
    features = _taps(target.net, jnp.asarray(prompt), (target.config.num_layers,))
    logits = jax.jit(lambda net, h: net.module(h, net.config.num_heads))
    heads = logits(spec.net, jnp.asarray(golden["features"]))
    return {"features": features, "medusa_logits": heads.swapaxes(0, 1)}


def _eagle3(
    target: Model, spec: Any, golden: Mapping[str, np.ndarray], prompt: np.ndarray
) -> dict[str, Array]:
    config: Eagle3Config = spec.net.config
    ids, taps = jnp.asarray(golden["input_ids"], jnp.int32), jnp.asarray(golden["taps"])
    out = {"taps": _taps(target.net, jnp.asarray(prompt), config.taps)}
    to_target = jnp.arange(config.draft_vocab_size)
    if spec.target_ids is not None:
        to_target = jnp.asarray(spec.target_ids)
    out |= {
        "d2t": to_target - jnp.arange(config.draft_vocab_size),
        "t2d": jnp.zeros(config.backbone.vocab_size, bool).at[to_target].set(True),
        "tap_layers": jnp.asarray(config.taps),
    }
    steps = len(golden["ttt_logits"]) if "ttt_logits" in golden else 1
    fused, states, logits = _eagle3_steps(spec.net, target.net.vocabulary, taps, ids, steps)
    out |= {"fc_out": fused, "draft_hidden": states, "draft_logits": logits[0]}
    out |= {"ttt_logits": logits, "ttt_draft_ids": logits.argmax(-1)}
    if "chain_logits" in golden:
        count = len(golden["chain_logits"])
        chain = _eagle3_chain(spec.net, target.net.vocabulary, taps, ids, to_target, count)
        out["chain_logits"] = chain
    return out


@functools.partial(jax.jit, static_argnames="steps")
def _eagle3_steps(
    net: Frozen, vocabulary: Vocabulary, taps: Array, ids: Array, steps: int
) -> tuple[Array, Array, Array]:
    """Steps over the whole text whose tokens are the text's own, each fed the states before it.

    Query t of a step sees the pairs 0..t of the first step and its own column of the later ones.

    Returns:
      Fused features [S, D], states of the first step [S, D], logits [steps, S, V_draft].
    """
    module, length = net.module, taps.shape[0]
    fused = module.fuse(taps[None])
    x, logits, first = fused, [], None
    keys: list[list[Array]] = [[] for _ in module.layers]
    values: list[list[Array]] = [[] for _ in module.layers]
    diagonal = jnp.eye(length, dtype=bool)[None]
    for step in range(steps):
        visible = jnp.concatenate([causal(length), *[diagonal] * step], axis=-1)

        def look(layer: int, q: Array, k: Array, v: Array, visible: Array = visible) -> Array:
            keys[layer].append(k)
            values[layer].append(v)
            k, v = (jnp.concatenate(parts[layer], axis=2) for parts in (keys, values))
            return attend(q, k, v, visible, None)

        tokens = ids[1 + step : 1 + step + length]
        tokens = jnp.pad(tokens, (0, length - len(tokens)))  # behind the text, as the reference
        positions = (step + jnp.arange(length))[None]
        x, normed, _ = module(x, _embed(net, vocabulary, tokens[None]), positions, look)
        first = x if first is None else first
        logits.append(module.head(normed)[0])
    assert first is not None
    return fused[0], first[0], jnp.stack(logits)


def _eagle3_chain(
    net: Frozen, vocabulary: Vocabulary, taps: Array, ids: Array, to_target: Array, count: int
) -> Array:
    """Logits [count, V_draft] of greedy guesses behind the text, each pass over all of it."""
    length = taps.shape[0]
    x = jnp.pad(net.module.fuse(taps[None])[0], ((0, count - 1), (0, 0)))
    tokens = jnp.pad(ids[1 : length + 1], (0, count - 1))
    chain = []
    for i in range(length - 1, length - 1 + count):
        state, logits = _eagle3_causal(net, vocabulary, x, tokens, jnp.int32(i))
        chain.append(logits)
        if i + 1 < length - 1 + count:
            x = x.at[i + 1].set(state)
            tokens = tokens.at[i + 1].set(to_target[logits.argmax()].astype(jnp.int32))
    return jnp.stack(chain)


@jax.jit
def _eagle3_causal(
    net: Frozen, vocabulary: Vocabulary, x: Array, tokens: Array, place: Array
) -> tuple[Array, Array]:
    """One causal pass over pairs: the state [D] and the logits [V_draft] at ``place``."""

    def look(layer: int, q: Array, k: Array, v: Array) -> Array:
        return attend(q, k, v, causal(x.shape[0]), None)

    positions = jnp.arange(x.shape[0])[None]
    embedded = _embed(net, vocabulary, tokens[None])
    states, normed, _ = net.module(x[None], embedded, positions, look)
    return states[0, place], net.module.head(normed)[0, place]


def _embed(net: Frozen, vocabulary: Vocabulary, tokens: Array) -> Array:
    return net.module.embed_tokens(tokens) if net.config.own_embedding else vocabulary.embed(tokens)


_OUTPUTS: dict[type, Callable[..., dict[str, Array]]] = {
    DFlashConfig: _dflash,
    Eagle3Config: _eagle3,
    MedusaConfig: _medusa,
}
