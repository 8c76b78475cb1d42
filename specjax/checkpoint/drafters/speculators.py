"""DFlash, DFlash2 and EAGLE-3 as ``speculators`` writes them.

The draft's sizes stand in ``transformer_layer_config``, which holds only what differs from the
defaults of its Transformers class. Layer ids count hidden_states itself. A sliding window of
DFlash is measured from the anchor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specjax.checkpoint.drafters import fit
from specjax.checkpoint.drafters.keys import BACKBONE, Keys
from specjax.checkpoint.drafters.source import Plan, Source
from specjax.checkpoint.errors import CheckpointError, some
from specjax.drafters.dflash import formats as zlab
from specjax.drafters.dflash.net import DFlashConfig
from specjax.drafters.eagle3 import formats as eagle3
from specjax.drafters.eagle3.net import Eagle3Config

_LAYERS = "transformer_layer_config"
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
_INERT = ("speculators_config", "speculators_model_type", "speculators_version", "dtype")
_MORE_INERT = ("transformers_version", "torch_dtype", "use_cache", "initializer_range", _LAYERS)
# The target's own tables, kept for the training loss alone.
_OF_TARGET = ("verifier_lm_head.weight", "verifier_norm.weight")


def read_dflash(source: Source, target: Any) -> Plan:
    """DFlash and DFlash2.

    Raises CheckpointError on what is unsupported, or does not fit ``target``.
    """
    config = read_dflash_config(source, target)
    return zlab.finish(source, target, config, _without_targets(source, target))


def read_dflash_config(source: Source, target: Any) -> DFlashConfig:
    """As `zlab.read_config`."""
    where, keys = source.where, Keys(source.raw, source.where)
    layers, two = _layers(source), source.raw["speculators_model_type"] == "dflash2"
    backbone = fit.read_backbone(layers, where, windows=True)
    ids = _ids(keys, "aux_hidden_state_layer_ids")
    width = keys.integer("target_hidden_size", backbone.hidden_size)
    windows, causal = zlab.read_attention(_attention(keys, layers), backbone.num_layers)
    fit.check_sizes(
        source, target, vocab_size=backbone.vocab_size, hidden_size=width, num_taps=len(ids)
    )
    rows = keys.integer("draft_vocab_size", 32000)
    config = DFlashConfig(
        backbone=backbone,
        taps=fit.read_taps(where, target, ids, "aux_hidden_state_layer_ids", 0),
        target_hidden_size=width,
        block_size=keys.integer("block_size", 8),
        mask_token_id=fit.mask_id(where, target, keys.integer("mask_token_id", least=0)),
        windows=windows,
        causal=causal,
        window_from_anchor=any(w is not None for w in windows),
        shifted=bool(keys.flag("sample_from_anchor")),
        conv_kernel_size=keys.integer("conv_kernel_size", 2) if two else 0,
        conv_group_size=keys.integer("conv_group_size", 16) if two else 16,
        selector_rank=keys.integer("selector_rank", 256) if two else 0,
        selector_top_k=keys.integer("selector_top_k", 16) if two else 16,
        draft_vocab_size=None if rows == backbone.vocab_size else rows,
    )
    keys.finish(*_INERT, *_MORE_INERT, strict=True)
    return config


def read_eagle3(source: Source, target: Any) -> Plan:
    """Raises CheckpointError on what is unsupported, or does not fit ``target``."""
    config, tensors = read_eagle3_config(source, target), _without_targets(source, target)
    return eagle3.plan(source, target, config, tensors, speculative_tokens(source))


def read_eagle3_config(source: Source, target: Any) -> Eagle3Config:
    """As `eagle3.read_config`."""
    where, keys = source.where, Keys(source.raw, source.where)
    layers = _layers(source)
    Keys(layers, f"{where}, {_LAYERS}").finish(*BACKBONE)
    if layers["model_type"] != "llama":
        raise CheckpointError(
            f"{where}: {_LAYERS}.model_type={layers['model_type']!r} is not supported for EAGLE-3 "
            "(supported: llama)."
        )
    backbone = fit.read_backbone(layers, where)
    key = "eagle_aux_hidden_state_layer_ids"
    ids = keys.integers(key)
    if ids is None:
        ids = () if target is None else eagle3.default_taps(target.config.num_layers)
    width = backbone.hidden_size if target is None else target.config.hidden_size
    config = Eagle3Config(
        backbone=backbone,
        taps=fit.read_taps(where, target, ids, "eagle_aux_hidden_state_layer_ids", 0)
        if ids
        else (),
        target_hidden_size=keys.integer("target_hidden_size", width),
        draft_vocab_size=keys.integer("draft_vocab_size", 32000),
        norm_before_residual=bool(keys.flag("norm_before_residual")),
        norm_before_fc=bool(keys.flag("norm_before_fc")),
        fc_norm=bool(keys.flag("fc_norm")),
        norm_output=bool(keys.flag("norm_output")),
    )
    keys.flag("embed_requires_grad")
    keys.finish(*_INERT, *_MORE_INERT, strict=True)
    speculative_tokens(source)
    return config


def _layers(source: Source) -> dict[str, Any]:
    """``transformer_layer_config`` with the defaults of its class."""
    said = source.raw.get(_LAYERS)
    if not isinstance(said, Mapping):
        raise CheckpointError(f"{source.where}: config.json lacks {_LAYERS}, the draft's sizes.")
    kind = said.get("model_type", "qwen3")
    if kind not in _DEFAULTS:
        raise CheckpointError(
            f"{source.where}: {_LAYERS}.model_type={kind!r} is not supported (supported: "
            f"{', '.join(_DEFAULTS)})."
        )
    return {**_DEFAULTS[kind], **said, "model_type": kind}


def _ids(keys: Keys, name: str) -> tuple[int, ...]:
    ids = keys.integers(name)
    if ids is None:
        raise CheckpointError(f"{keys.where}: config.json lacks {name}, the tapped layers.")
    return ids


def _attention(keys: Keys, layers: Mapping[str, Any]) -> Keys:
    """The attention keys as `zlab.read_attention` looks for them; nothing else may be left."""
    Keys(layers, f"{keys.where}, {_LAYERS}").finish(*BACKBONE)
    raw = {k: layers.get(k) for k in ("layer_types", "sliding_window", "max_window_layers")}
    # Full layers see both ways in any case, so that the flag is one for all layers.
    default = keys.raw["speculators_model_type"] == "dflash2"
    causal = {"is_causal": False} if keys.flag("sliding_window_non_causal", default) else {}
    sliding = layers.get("use_sliding_window")
    return Keys({**raw, **causal, "use_sliding_window": sliding}, keys.where)


def _without_targets(source: Source, target: Any) -> dict[str, Any]:
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
