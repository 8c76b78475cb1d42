"""DFlash and DFlash2 as ``speculators`` writes them. A window is measured from the anchor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specjax.checkpoint.drafters import fit, speculators
from specjax.checkpoint.drafters.keys import BACKBONE, Keys
from specjax.checkpoint.drafters.source import Plan, Source
from specjax.drafters.dflash import zlab
from specjax.drafters.dflash.net import DFlashConfig
from specjax.models.target import Target


def read(source: Source, target: Target) -> Plan:
    """DFlash and DFlash2.

    Raises CheckpointError on what is unsupported, or does not fit ``target``.
    """
    config = read_config(source, target)
    return zlab.finish(source, target, config, speculators.without_targets(source, target))


def read_config(source: Source, target: Target) -> DFlashConfig:
    """As `zlab.read_config`."""
    where, keys = source.where, Keys(source.raw, source.where)
    layers, two = speculators.read_layers(source), source.raw["speculators_model_type"] == "dflash2"
    backbone = fit.read_backbone(layers, where, windows=True)
    ids = speculators.read_ids(keys, "aux_hidden_state_layer_ids")
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
    keys.finish(*speculators.INERT, strict=True)
    return config


def _attention(keys: Keys, layers: Mapping[str, Any]) -> Keys:
    """The attention keys as `zlab.read_attention` looks for them; nothing else may be left."""
    Keys(layers, f"{keys.where}, {speculators.LAYERS}").finish(*BACKBONE)
    raw = {k: layers.get(k) for k in ("layer_types", "sliding_window", "max_window_layers")}
    # Full layers see both ways in any case, so that the flag is one for all layers.
    default = keys.raw["speculators_model_type"] == "dflash2"
    causal = {"is_causal": False} if keys.flag("sliding_window_non_causal", default) else {}
    sliding = layers.get("use_sliding_window")
    return Keys({**raw, **causal, "use_sliding_window": sliding}, keys.where)
