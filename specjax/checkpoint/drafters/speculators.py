"""DFlash, DFlash2 and EAGLE-3 as ``speculators`` writes them.

The draft's sizes stand in ``transformer_layer_config``, which holds only what differs from the
defaults of its Transformers class. Layer ids count hidden_states itself. A sliding window of
DFlash is measured from the anchor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specjax.checkpoint.drafters import eagle3, fit, zlab
from specjax.checkpoint.drafters.keys import BACKBONE, Keys, check_rope
from specjax.checkpoint.drafters.source import Plan, Source
from specjax.checkpoint.errors import CheckpointError
from specjax.models.drafts.dflash import DFlashConfig
from specjax.models.drafts.eagle3 import Eagle3Config

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
    where, keys = source.where, Keys(source.raw, source.where)
    layers, two = _layers(source), source.raw["speculators_model_type"] == "dflash2"
    backbone = fit.read_backbone(layers, where)
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
    )
    keys.finish(*_INERT, *_MORE_INERT, strict=True)
    tensors = _without_targets(source, target)
    return zlab.finish(source, target, config, tensors, rows)


def read_eagle3(source: Source, target: Any) -> Plan:
    """Raises CheckpointError on what is unsupported, or does not fit ``target``."""
    where, keys = source.where, Keys(source.raw, source.where)
    layers = _layers(source)
    inner = Keys(layers, f"{where}, {_LAYERS}")
    inner.only("use_sliding_window", False)
    inner.finish(*BACKBONE, "layer_types", "sliding_window")
    if set(layers.get("layer_types") or ()) - {"full_attention"}:
        raise CheckpointError(f"{where}: sliding layers of an EAGLE-3 drafter are not supported.")
    if layers["model_type"] != "llama":
        raise CheckpointError(
            f"{where}: {_LAYERS}.model_type={layers['model_type']!r} is not supported for EAGLE-3 "
            "(supported: llama)."
        )
    backbone = fit.read_backbone(layers, where)
    if keys.get("eagle_aux_hidden_state_layer_ids") is None:
        ids = eagle3.default_taps(target.config.num_layers)
    else:
        ids = _ids(keys, "eagle_aux_hidden_state_layer_ids")
    config = Eagle3Config(
        backbone=backbone,
        taps=fit.read_taps(where, target, ids, "eagle_aux_hidden_state_layer_ids", 0),
        target_hidden_size=keys.integer("target_hidden_size", target.config.hidden_size),
        draft_vocab_size=keys.integer("draft_vocab_size", 32000),
        norm_before_residual=bool(keys.flag("norm_before_residual")),
        norm_before_fc=bool(keys.flag("norm_before_fc")),
        fc_norm=bool(keys.flag("fc_norm")),
        norm_output=bool(keys.flag("norm_output")),
    )
    keys.flag("embed_requires_grad")
    keys.finish(*_INERT, *_MORE_INERT, strict=True)
    tensors = _without_targets(source, target)
    return eagle3.plan(source, target, config, tensors, _speculative_tokens(source.raw))


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
    check_rope(said, source.where)
    return {**_DEFAULTS[kind], **said, "model_type": kind}


def _ids(keys: Keys, name: str) -> tuple[int, ...]:
    ids = keys.integers(name)
    if ids is None:
        raise CheckpointError(f"{keys.where}: config.json lacks {name}, the tapped layers.")
    return ids


def _attention(keys: Keys, layers: Mapping[str, Any]) -> Keys:
    """The attention keys as `zlab.read_attention` looks for them; nothing else may be left."""
    inner = Keys(layers, f"{keys.where}, {_LAYERS}")
    inner.finish(
        *BACKBONE, "layer_types", "sliding_window", "use_sliding_window", "max_window_layers"
    )
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


def _speculative_tokens(raw: Mapping[str, Any]) -> int | None:
    """Guesses a cycle that the checkpoint proposes."""
    try:
        tokens = raw["speculators_config"]["proposal_methods"][0]["speculative_tokens"]
    except (KeyError, IndexError, TypeError):
        return None
    return tokens if type(tokens) is int and tokens > 0 else None
