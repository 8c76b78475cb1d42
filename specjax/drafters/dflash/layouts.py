"""The two layouts of a DFlash or DFlash2 checkpoint."""

from __future__ import annotations

from typing import Any

from specjax.checkpoint.drafters.layouts import (
    Layout,
    Tensors,
    refuser,
    speculators_keys,
    transformer,
    vocabulary_maps,
)
from specjax.drafters.dflash.net import DFlashConfig
from specjax.models.rope_config import write_rope_scaling
from specjax.models.target import Target


def zlab(spec: Any, tensors: Tensors, target: Target, verifier: str) -> Layout:
    """z-lab's, for package ``dflash``, SGLang and vLLM: both generations of keys, equal values.

    ``target_layer_ids`` count layers: id l is hidden_states[l + 1].
    """
    del verifier
    c: DFlashConfig = spec.net.config
    no = refuser("zlab", spec)
    no(c.shifted or c.markov_rank or c.confidence_head, "shifted slots")
    no(c.draft_vocab_size is not None or c.own_embedding, "tables of its own")
    no(c.target_hidden_size != c.backbone.hidden_size, "a width other than the target's")
    no(0 in c.taps, "a tap of the embedding")
    windowed = [w for w in c.windows if w is not None]
    no(len(set(windowed)) > 1, "layers with different windows")
    no(bool(windowed) and c.window_from_anchor, "windows measured from the anchor")
    special: dict[str, Any] = {
        "block_size": c.block_size,
        "mask_token_id": c.mask_token_id,
        "target_layer_ids": [tap - 1 for tap in c.taps],
    }
    if c.conv_kernel_size or c.selector_rank:
        no(not (c.conv_kernel_size and c.selector_rank), "one of DFlash2's two parts alone")
        special |= _dflash2(c)
    if c.embedding_scale != 1.0:
        special["input_embedding_scale"] = c.embedding_scale
    if c.output_multiplier != 1.0:
        special["output_multiplier"] = c.output_multiplier
    if c.logit_softcap is not None:
        special["final_logit_softcapping"] = c.logit_softcap
    name = "DFlash2DraftModel" if c.selector_rank else "DFlashDraftModel"
    config = {
        "architectures": [name],
        "auto_map": {"AutoModel": f"dflash.{name}"},
        **transformer("qwen3", c.backbone, target),
        "rope_theta": c.backbone.rope.theta,
        "rope_scaling": write_rope_scaling(c.backbone.rope),
        **_layer_types(c),
        "num_target_layers": target.config.num_layers,
        "block_size": c.block_size,
        "dflash_config": special,
    }
    # Without the key, layers with a window are causal inside the block and the others are not.
    if c.causal != tuple(w is not None for w in c.windows):
        no(len(set(c.causal)) > 1, "this mixture of causal and bidirectional layers")
        config["is_causal"] = c.causal[0]
    return Layout(config, tensors)


def speculators(spec: Any, tensors: Tensors, target: Target, verifier: str) -> Layout:
    """The format of vllm-project/speculators, read by vLLM: ids are those of hidden_states."""
    c: DFlashConfig = spec.net.config
    no = refuser("speculators", spec)
    vocab = c.backbone.vocab_size
    no(c.markov_rank or c.confidence_head, "DSpark's heads")
    no(c.own_embedding, "an embedding of its own (the reader puts the target's in its place)")
    no(c.draft_vocab_size == vocab, "a whole head of its own (the reader takes the target's)")
    no(c.target_hidden_size != c.backbone.hidden_size, "a width other than the target's")
    no(
        (c.embedding_scale, c.output_multiplier, c.logit_softcap) != (1.0, 1.0, None),
        "scaled embeddings or logits",
    )
    windowed = [w for w in c.windows if w is not None]
    no(len(set(windowed)) > 1, "layers with different windows")
    no(bool(windowed) and not c.window_from_anchor, "windows measured from each query")
    no(any(w < c.block_size for w in windowed), "a window shorter than the block")
    no(any(x for x, w in zip(c.causal, c.windows) if w is None), "causal layers without a window")
    causal = {x for x, w in zip(c.causal, c.windows) if w is not None}
    no(len(causal) > 1, "this mixture of causal and bidirectional layers")
    special: dict[str, Any] = {}
    if c.conv_kernel_size or c.selector_rank:
        no(not (c.conv_kernel_size and c.selector_rank), "one of DFlash2's two parts alone")
        special = _dflash2(c)
    kind = "dflash2" if special else "dflash"
    config = {
        "architectures": ["DFlash2DraftModel" if special else "DFlashDraftModel"],
        "aux_hidden_state_layer_ids": list(c.taps),
        "block_size": c.block_size,
        "draft_vocab_size": c.draft_vocab_size or vocab,
        "mask_token_id": c.mask_token_id,
        "sample_from_anchor": c.shifted,
        "sliding_window_non_causal": causal == {False},
        **special,
        **speculators_keys(kind, target, verifier, c.max_guesses),
        "transformer_layer_config": {**transformer("qwen3", c.backbone, target), **_layer_types(c)},
    }
    return Layout(config, {**tensors, **vocabulary_maps(spec.target_ids, vocab)})


def _layer_types(c: DFlashConfig) -> dict[str, Any]:
    windowed = [w for w in c.windows if w is not None]
    kinds = ["full_attention" if w is None else "sliding_attention" for w in c.windows]
    return {
        "layer_types": kinds,
        "sliding_window": windowed[0] if windowed else None,
        "use_sliding_window": bool(windowed),
        # Where Transformers lets layers slide when no list says which.
        "max_window_layers": c.backbone.num_layers,
    }


def _dflash2(c: DFlashConfig) -> dict[str, Any]:
    return {
        "conv_kernel_size": c.conv_kernel_size,
        "conv_group_size": c.conv_group_size,
        "selector_rank": c.selector_rank,
        "selector_top_k": c.selector_top_k,
    }
