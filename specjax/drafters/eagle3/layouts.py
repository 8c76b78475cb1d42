"""The two layouts of an EAGLE-3 checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np

from specjax.checkpoint.drafters.layouts import (
    Layout,
    Tensors,
    refuser,
    speculators_keys,
    transformer,
    vocabulary_maps,
)
from specjax.core import hosts
from specjax.drafters.eagle3 import latent
from specjax.drafters.eagle3.net import Eagle3Config
from specjax.models.config import UNNORMED
from specjax.models.rope_config import write_rope_scaling
from specjax.models.target import Target

_UNNORMED = "a tap before the final norm"


def safeailab(spec: Any, tensors: Tensors, target: Target, verifier: str) -> Layout:
    """That of SafeAILab/EAGLE, SpecForge and SGLang: one layer, called ``midlayer``.

    With latent attention it is what vLLM and SGLang read for Kimi, norms of EAGLE-3.1 included.

    SafeAILab's own code always taps hidden_states 2, L/2 and L-3 of an L-layer target. SpecForge
    and SGLang also read a list, nested in ``eagle_config``, whose id l is hidden_states[l + 1].
    """
    del verifier
    c: Eagle3Config = spec.net.config
    no = refuser("safeailab", spec)
    no(c.backbone.num_layers != 1, "more than one layer")
    no(c.window is not None, "a window")
    more = c.norm_before_residual or c.norm_before_fc
    no(more or (c.latent is None and (c.fc_norm or c.norm_output)), "further norms")
    no(c.backbone.attention_bias or c.backbone.mlp_bias, "biases")
    no(len(c.taps) != 3, "other than three taps")
    no(0 in c.taps, "a tap of the embedding")
    no(UNNORMED in c.taps, _UNNORMED)
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        **transformer("llama", c.backbone, target),
        "rope_theta": c.backbone.rope.theta,
        "rope_scaling": write_rope_scaling(c.backbone.rope),
        "draft_vocab_size": c.draft_vocab_size,
        "target_hidden_size": c.target_hidden_size,
        "eagle_config": {
            "eagle_aux_hidden_state_layer_ids": [tap - 1 for tap in c.taps],
            "use_aux_hidden_state": True,
        },
    }
    if c.latent is not None:
        del config["head_dim"]
        config |= latent.write(c.latent) | {"fc_norm": c.fc_norm, "norm_output": c.norm_output}
    tensors = {**tensors, **_head(spec, target)}
    renamed = {name.replace("layers.0.", "midlayer.", 1): x for name, x in tensors.items()}
    # SpecForge wants the maps of a whole vocabulary, too; others do not mind them.
    vocab = c.backbone.vocab_size
    return Layout(config, {**renamed, **(_maps(spec) or vocabulary_maps(np.arange(vocab), vocab))})


def speculators(spec: Any, tensors: Tensors, target: Target, verifier: str) -> Layout:
    """The format of vllm-project/speculators, read by vLLM: ids are those of hidden_states.

    Its files hold the embedding even where that is the target's: without it the reader (0.9.0) may
    take whatever memory it finds for one.
    """
    c: Eagle3Config = spec.net.config
    if not c.own_embedding:
        table = hosts.fetch(target.net.vocabulary.embedding)
        tensors = {**tensors, "embed_tokens.weight": np.ascontiguousarray(table)}
    tensors = {**tensors, **_head(spec, target)}
    no = refuser("speculators", spec)
    no(c.latent is not None, "latent attention")
    no(c.window is not None, "a window")
    no(UNNORMED in c.taps, _UNNORMED)
    no(c.target_hidden_size != c.backbone.hidden_size, "a width other than the target's")
    config = {
        "architectures": ["Eagle3DraftModel"],
        "draft_vocab_size": c.draft_vocab_size,
        "eagle_aux_hidden_state_layer_ids": list(c.taps),
        "embed_requires_grad": False,
        "norm_before_residual": c.norm_before_residual,
        "norm_before_fc": c.norm_before_fc,
        "fc_norm": c.fc_norm,
        "norm_output": c.norm_output,
        **speculators_keys("eagle3", target, verifier, spec.num_draft),
        "transformer_layer_config": {
            **transformer("llama", c.backbone, target),
            "mlp_bias": c.backbone.mlp_bias,
        },
    }
    return Layout(config, {**tensors, **_maps(spec)})


def _head(spec: Any, target: Target) -> Tensors:
    """The target's head, for readers that want one in the file."""
    if spec.net.config.own_head:
        return {}
    return {"lm_head.weight": np.ascontiguousarray(hosts.fetch(target.net.vocabulary.output))}


def _maps(spec: Any) -> Tensors:
    c: Eagle3Config = spec.net.config
    if spec.target_ids is None and c.draft_vocab_size != c.backbone.vocab_size:
        raise ValueError(
            f"{spec.name} has a vocabulary of {c.draft_vocab_size} tokens but no target_ids."
        )
    reduced = c.draft_vocab_size != c.backbone.vocab_size
    return vocabulary_maps(spec.target_ids if reduced else None, c.backbone.vocab_size)
