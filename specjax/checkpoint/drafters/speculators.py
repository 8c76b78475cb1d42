"""What checkpoints of ``speculators`` share, whatever the kind of drafter.

The draft's sizes stand in ``transformer_layer_config``, which holds only what differs from the
defaults of its Transformers class. Layer ids count hidden_states itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specjax.checkpoint.drafters.keys import Keys
from specjax.checkpoint.drafters.source import Source
from specjax.checkpoint.errors import CheckpointError, some
from specjax.models.target import Target

LAYERS = "transformer_layer_config"
# Those fields of the Transformers classes whose defaults `read_decoder_config` does not share.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
    },
    "qwen3": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
    },
}
# Of the speculator, and of how it was made.
INERT = (
    *("speculators_config", "speculators_model_type", "speculators_version", "dtype"),
    *("transformers_version", "torch_dtype", "use_cache", "initializer_range", LAYERS),
)
# The target's own tables, kept for the training loss alone.
_OF_TARGET = ("verifier_lm_head.weight", "verifier_norm.weight")


def read_layers(source: Source) -> dict[str, Any]:
    """``transformer_layer_config`` with the defaults of its class."""
    said = source.raw.get(LAYERS)
    if not isinstance(said, Mapping):
        raise CheckpointError(f"{source.where}: config.json lacks {LAYERS}, the draft's sizes.")
    kind = said.get("model_type", "qwen3")
    if kind not in _DEFAULTS:
        raise CheckpointError(
            f"{source.where}: {LAYERS}.model_type={kind!r} is not supported (supported: "
            f"{', '.join(_DEFAULTS)})."
        )
    return {**_DEFAULTS[kind], **said, "model_type": kind}


def read_ids(keys: Keys, name: str) -> tuple[int, ...]:
    ids = keys.integers(name)
    if ids is None:
        raise CheckpointError(f"{keys.where}: config.json lacks {name}, the tapped layers.")
    return ids


def without_targets(source: Source, target: Target) -> dict[str, Any]:
    """The tensors but for copies of the target's that only training used."""
    vocab, width = target.config.vocab_size, target.config.hidden_size
    shapes = dict(zip(_OF_TARGET, ((vocab, width), (width,))))
    for name, shape in shapes.items():
        if name in source.tensors and source.tensors[name].shape != shape:
            raise CheckpointError(
                f"{source.where}: {name} is {list(source.tensors[name].shape)}, but {target.name} "
                f"has {list(shape)}: it belongs to another target; give that one."
            )
    return {n: t for n, t in source.tensors.items() if n not in _OF_TARGET}


def speculative_tokens(source: Source) -> int | None:
    """Guesses a cycle that the checkpoint proposes, by its default method where it has several.

    Raises:
      CheckpointError: if the default is none of its methods.
    """
    said = source.raw.get("speculators_config") or {}
    methods, default = said.get("proposal_methods") or [], said.get("default_proposal_method")
    if not methods:
        return None
    kinds = [method.get("proposal_type") for method in methods]
    if default is not None and default not in kinds:
        raise CheckpointError(
            f"{source.where}: default_proposal_method={default!r} is none of its proposal_methods "
            f"({some(map(str, kinds))}); correct one of them."
        )
    tokens = methods[0 if default is None else kinds.index(default)].get("speculative_tokens")
    return None if tokens is None else int(tokens)
