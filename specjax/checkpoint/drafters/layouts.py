"""What the layouts of a drafter's checkpoint share, whatever its kind.

A layout refuses what its readers would ignore or do differently: a drafter that loads elsewhere
and quietly guesses badly is worse than one that does not load.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from specjax.models.config import DecoderConfig
from specjax.models.rope_config import write_rope_scaling
from specjax.models.target import Target

SPECULATORS_VERSION = "0.9.0"  # whose format is written
Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The contents of a directory."""

    config: dict[str, Any]  # config.json, but for the dtype
    tensors: Tensors
    file: str = "model.safetensors"
    pickle: str | None = None  # the same tensors once more, for readers that know only PyTorch's


def transformer(model_type: str, backbone: DecoderConfig, target: Target) -> dict[str, Any]:
    """The keys of a Transformers config, in the spelling of version 5."""
    stop = list(target.stop_token_ids)
    return {
        "model_type": model_type,
        "hidden_size": backbone.hidden_size,
        "intermediate_size": backbone.intermediate_size,
        "num_hidden_layers": backbone.num_layers,
        "num_attention_heads": backbone.num_heads,
        "num_key_value_heads": backbone.num_kv_heads,
        "head_dim": backbone.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": backbone.rms_norm_eps,
        "attention_bias": backbone.attention_bias,
        "attention_dropout": 0.0,
        "vocab_size": backbone.vocab_size,
        "max_position_embeddings": backbone.max_position_embeddings,
        "rope_parameters": {
            "rope_theta": backbone.rope.theta,
            **(write_rope_scaling(backbone.rope) or {"rope_type": "default"}),
        },
        "tie_word_embeddings": False,
        "bos_token_id": target.bos_token_id,
        "eos_token_id": stop[0] if len(stop) == 1 else stop or None,
    }


def speculators_keys(kind: str, target: Target, verifier: str, guesses: int) -> dict[str, Any]:
    """The keys that every checkpoint of that format has."""
    greedy = {
        "proposal_type": "greedy",
        "speculative_tokens": guesses,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    architecture = getattr(type(target.net.module), "architecture", None)
    if architecture is None:
        raise ValueError(
            f"format='speculators' names the architecture of the target, and the family of "
            f"{target.name} has none (a class attribute architecture)."
        )
    return {
        "speculators_model_type": kind,
        "speculators_version": SPECULATORS_VERSION,
        "speculators_config": {
            "algorithm": kind,
            "default_proposal_method": "greedy",
            "proposal_methods": [greedy],
            "verifier": {
                "architectures": [architecture],
                "name_or_path": verifier,
            },
        },
        "tie_word_embeddings": False,
    }


def vocabulary_maps(target_ids: Any, vocab_size: int) -> Tensors:
    """``d2t`` (what to add to a draft id) and ``t2d`` (which ids it has); none: it has all.

    Raises:
      ValueError: if the ids do not ascend: ``t2d`` cannot say another order.
    """
    if target_ids is None:
        return {}
    ids = np.asarray(target_ids, np.int64)
    if (np.diff(ids) <= 0).any():
        raise ValueError("The draft vocabulary must name the target's ids in ascending order.")
    has = np.zeros(vocab_size, np.bool_)
    has[ids] = True
    return {"d2t": ids - np.arange(ids.size), "t2d": has}


def refuser(format: str, spec: Any) -> Any:
    """``no(condition, what)`` raises ValueError when the condition holds."""

    def no(condition: Any, what: str) -> None:
        if condition:
            raise ValueError(f"format={format!r} cannot express {what}, which {spec.name} has.")

    return no
